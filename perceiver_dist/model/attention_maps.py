"""Where the latents look: the weights of every cross-attend, as maps over the inputs."""

from collections.abc import Mapping

import torch
from torch import Tensor

from perceiver_dist.model.attention import DenseTokens
from perceiver_dist.model.inputs import Presence, Tokens, read_presence
from perceiver_dist.model.perceiver import Perceiver


class WatchedTokens(DenseTokens):
    """Tokens that keep the weights with which they were averaged, (B, N, M) of each cross-attend.

    Args:
        tokens: One entry per modality of the step.
        presence: What is missing, or None.
        dtype: Of the array; the model's parameters' dtype.
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
        scores = query @ self.keys[:, 0, :, : self.channels].transpose(1, 2)
        if self.mask is not None:
            scores = scores.masked_fill(~self.mask[:, 0], -torch.inf)
        self.weights.append(scores.softmax(-1))
        return super().attend(query)


@torch.no_grad()
def attention_maps(
    model: Perceiver, arrays: Mapping[str, Tensor], present: Mapping[str, Tensor]
) -> list[dict[str, Tensor]]:
    """Return what every latent attends to, in the paper's way (figure 3 there).

    Args:
        model: The model. Its own attention is not used, but the dense one, which has the same values: memory is that of
            B * N * M weights for each cross-attend.
        arrays: (B, *array_shape) per modality, as `Perceiver.forward` takes them.
        present: (B,) bool per modality.

    Returns:
        For each cross-attend in order, by modality, (B, N, *grid): weights at the places that tokens have in the input,
        whatever order the model has them in. Those of a sample's latent add up to 1 over all modalities.
    """
    names = [name for name in model.tokenizers if name in arrays]
    tokens = model.tokenize(arrays, names, model.encodings(), model.positions())
    batch = tokens[0].content.shape[0]
    watched = WatchedTokens(tokens, read_presence(present, names, batch), model.latents.dtype)
    model.encode(watched, batch)
    counts = [part.mean.shape[1] for part in tokens]
    return [
        {
            name: _in_place(part, model, name)
            for name, part in zip(names, torch.split(weights, counts, dim=-1), strict=True)
        }
        for weights in watched.weights
    ]


def _in_place(weights: Tensor, model: Perceiver, name: str) -> Tensor:
    """(B, N, M) in the order of the tokens -> (B, N, *grid)."""
    order = model.tokenizers[name].order
    if isinstance(order, Tensor):
        weights = weights[..., order.argsort()]
    return weights.reshape(*weights.shape[:-1], *model.config.modalities[name].grid)
