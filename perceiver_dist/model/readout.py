"""Perceiver IO's decoder (arXiv 2107.14795, 2.1): queries read the latents as latents read the tokens."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from perceiver_dist.model.attention import CrossAttend, LatentTokens
from perceiver_dist.model.layers import LearnedArrays


class Decoder(nn.Module):
    """One learned query per source, and one cross-attend to the latents for all of them.

    Queries do not see each other, so a source's result does not depend on the other sources.

    Args:
        width: Latent width D, which queries, keys and values have too.
        sources: Names of the sources.
    """

    def __init__(self, width: int, sources: Iterable[str]) -> None:
        super().__init__()
        self.queries = LearnedArrays(dict.fromkeys(sources, (width,)))
        self.cross_attend = CrossAttend(width, width)

    def forward(self, latents: Tensor) -> dict[str, Tensor]:
        """Read the latents for every source, whichever the step needs.

        Args:
            latents: (B, N, D).

        Returns:
            (B, D) by source.
        """
        queries: dict[str, Tensor] = self.queries()
        stacked = torch.stack(list(queries.values())).expand(latents.shape[0], -1, -1)
        read: Tensor = self.cross_attend(stacked, LatentTokens(latents))
        return dict(zip(queries, read.unbind(dim=1), strict=True))
