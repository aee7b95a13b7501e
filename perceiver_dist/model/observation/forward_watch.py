"""Statistics of cross-attention within a forward pass: how far each cross-attend spreads its attention.

A `ForwardWatch` is made the observer of a model, and the next forward pass fills it. Attention is computed as without
it; the scores of some rows (a row is one latent of one sample) are computed a second time beside it, without gradient.
So a watched step has the bits of one that is not watched, at any ZeRO stage: no module runs twice.

Shapes: B batch, M tokens, N latents, C token channels, D latent width.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor

from perceiver_dist.errors import InternalError
from perceiver_dist.model.attention import AttendableTokens, normalised, visible_tokens
from perceiver_dist.model.inputs import Presence, Tokens

SATURATED = 0.99
"""Largest weight of a softmax from which it counts as saturated. Its gradient is then at most 0.01 of its scores'."""

_SCORES = 2**19
"""Most scores of a cross-attend that are computed again: ten rows of 50,176 pixels. The default model stays below."""

_SAMPLES = 4
"""Samples whose latents are compared, and most samples whose attention is."""


class ForwardWatch:
    """Statistics of the first forward pass of the model that has it as its observer; later passes change nothing.

    Args:
        cross_attends: Number T of the model's cross-attends.
    """

    def __init__(self, cross_attends: int) -> None:
        self._cross_attends = cross_attends
        self._attention: list[Tensor] = []
        self._cosine: Tensor | None = None

    def over(
        self, attendable: AttendableTokens, tokens: Sequence[Tokens], presence: Presence | None
    ) -> AttendableTokens:
        """Return the same tokens, watched.

        Args:
            attendable: The tokens of the batch, as keys and values.
            tokens: The same by modality.
            presence: Which modalities each sample has; None if no sample lacks one.
        """
        return attendable if self._cosine is not None else _WatchedTokens(self, attendable, tokens, presence)

    def add(self, statistics: Tensor) -> None:
        """Add the statistics of the next cross-attend. What activation checkpointing computes again is left out.

        Args:
            statistics: (2,) entropy and share of saturated rows.
        """
        if len(self._attention) < self._cross_attends:
            self._attention.append(statistics)

    @torch.no_grad()
    def saw_latents(self, latents: Tensor) -> None:
        """Take the latents after the last block.

        Args:
            latents: (B, N, D).
        """
        if self._cosine is None:
            self._cosine = mean_cosine(latents[:_SAMPLES])

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return the statistics of the forward pass, on the model's device, without waiting for it.

        Returns:
            (T, 2): for each cross-attend the mean entropy of its rows, as a fraction of that of even attention, and the
            share of rows whose largest weight is above `SATURATED`; and (): the mean cosine between two latents of a
            sample.

        Raises:
            InternalError: There was no forward pass.
        """
        if self._cosine is None:
            raise InternalError(
                "the watch has seen no forward pass: make it the observer of a model that runs"
            )
        return torch.stack(self._attention), self._cosine


class _WatchedTokens:
    """Tokens that measure the attention to them.

    Args:
        watch: What gets the statistics.
        attendable: The tokens.
        tokens: The same by modality.
        presence: Which modalities each sample has.
    """

    def __init__(
        self,
        watch: ForwardWatch,
        attendable: AttendableTokens,
        tokens: Sequence[Tokens],
        presence: Presence | None,
    ) -> None:
        self._watch, self._attendable = watch, attendable
        count = sum(part.mean.shape[1] for part in tokens)
        self._rows = max(1, _SCORES // count)
        samples = min(_SAMPLES, self._rows)
        with torch.no_grad():
            self._keys = torch.cat([normalised(_first(part, samples)) for part in tokens], dim=1)
            self._visible: Tensor | None = None
            if presence is not None:
                self._visible = visible_tokens(presence, tokens)[:samples]

    def attend(self, query: Tensor) -> Tensor:
        """See `AttendableTokens.attend`.

        Args:
            query: (B, N, C).

        Returns:
            (B, N, C) in the query's dtype.
        """
        self._watch.add(self._measure(query))
        return self._attendable.attend(query)

    @torch.no_grad()
    def _measure(self, query: Tensor) -> Tensor:
        keys, visible = self._keys, self._visible
        # Evenly spaced latents of as many samples as there is room for.
        latents = min(query.shape[1], self._rows)
        samples = min(len(keys), max(1, self._rows // latents))
        chosen = query[:samples, :: query.shape[1] // latents][:, :latents]
        with torch.autocast(query.device.type, enabled=False):
            scores = chosen.to(keys.dtype) @ keys[:samples].transpose(1, 2)
            if visible is not None:
                scores = scores.masked_fill(~visible[:samples, None], -torch.inf)
            return attention_statistics(scores)


def attention_statistics(scores: Tensor) -> Tensor:
    """Return how far softmax spreads over the tokens.

    Args:
        scores: (B, N, M), -inf at tokens that are not visible.

    Returns:
        (2,): the mean entropy of the rows divided by that of an even softmax, in [0, 1], and the share of rows whose
        largest weight is above `SATURATED`. A row with one visible token has nothing to choose, and counts as even.
    """
    weights = scores.softmax(-1)
    choices = scores.isfinite().sum(-1)
    chooses = choices > 1
    entropy = torch.special.entr(weights).sum(-1) / choices.clamp(min=2).log()
    saturated = (weights.amax(-1) > SATURATED) & chooses
    return torch.stack([torch.where(chooses, entropy, 1.0).mean(), saturated.to(entropy.dtype).mean()])


def mean_cosine(latents: Tensor) -> Tensor:
    """Return the mean cosine between two different latents of a sample: 1 if all of them say the same.

    Args:
        latents: (B, N, D).

    Returns:
        Scalar, fp32 or fp64; 1 with one latent.
    """
    directions = F.normalize(latents.to(torch.promote_types(latents.dtype, torch.float32)), dim=-1)
    count = directions.shape[1]
    if count == 1:
        return directions.new_ones(())
    # The sum over all pairs is the square of the sum, and N of the pairs are a latent with itself.
    return ((directions.sum(1).square().sum(-1) - count) / (count * (count - 1))).mean()


def _first(tokens: Tokens, samples: int) -> Tokens:
    """Return the tokens of the first samples."""
    return replace(
        tokens, content=tokens.content[:samples], mean=tokens.mean[:samples], rstd=tokens.rstd[:samples]
    )
