"""Attention maps: the weights of every cross-attend, over the places of the inputs.

Shapes: B batch, M tokens, N latents, C token channels.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from perceiver_dist.model.attention import DenseTokens
from perceiver_dist.model.inputs import Presence, Tokens, read_presence
from perceiver_dist.model.perceiver import Perceiver


class RecordingTokens(DenseTokens):
    """Tokens that record the weights with which they are averaged, (B, N, M) for each cross-attend.

    Args:
        tokens: One entry per modality of the step.
        presence: Which modalities each sample has; None if no sample lacks one.
        dtype: Dtype of the array, that of the model's parameters.
    """

    def __init__(self, tokens: list[Tokens], presence: Presence | None, dtype: torch.dtype) -> None:
        super().__init__(tokens, presence, dtype)
        self.weights: list[Tensor] = []

    def attend(self, query: Tensor) -> Tensor:
        """See `AttendableTokens.attend`.

        Args:
            query: (B, N, C).

        Returns:
            (B, N, C) in the query's dtype.
        """
        # Recomputed beside the fused attention, which does not return its weights.
        scores = query @ self.keys[:, 0, :, : self.channels].transpose(1, 2)
        if self.mask is not None:
            scores = scores.masked_fill(~self.mask[:, 0], -torch.inf)
        self.weights.append(scores.softmax(-1))
        return super().attend(query)


@torch.no_grad()
def attention_maps(
    model: Perceiver, arrays: Mapping[str, Tensor], present: Mapping[str, Tensor]
) -> list[dict[str, Tensor]]:
    """Return the attention weights of every latent, as in figure 3 of the paper.

    Whatever the model's `cross_attention`, they are computed the dense way, which has the same values. That takes
    memory for B * N * M weights per cross-attend.

    Args:
        model: The model.
        arrays: (B, *array_shape) by modality, as for `Perceiver.forward`.
        present: (B,) bool by modality.

    Returns:
        For each cross-attend in order, by modality, (B, N, *grid): the weights at the tokens' places in the input, with
        any permutation undone. The weights of one latent of one sample sum to 1 over all modalities.
    """
    names = [name for name in model.tokenizers if name in arrays]
    tokens = model.tokenize(arrays, names, model.encodings(), model.positions())
    batch = tokens[0].content.shape[0]
    presence = read_presence(present, names, batch, model.latents.device)
    recorded = RecordingTokens(tokens, presence, model.latents.dtype)
    model.encode(recorded, batch)
    counts = [part.mean.shape[1] for part in tokens]
    return [
        {
            name: _to_grid(part, model, name)
            for name, part in zip(names, torch.split(weights, counts, dim=-1), strict=True)
        }
        for weights in recorded.weights
    ]


def _to_grid(weights: Tensor, model: Perceiver, name: str) -> Tensor:
    """Map weights (B, N, M) in the order of the tokens to (B, N, *grid)."""
    order = model.tokenizers[name].order
    if isinstance(order, Tensor):
        weights = weights[..., order.argsort()]
    return weights.reshape(*weights.shape[:-1], *model.config.modalities[name].grid)
