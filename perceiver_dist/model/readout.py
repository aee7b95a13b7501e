"""Decoder of Perceiver IO (arXiv 2107.14795, section 2.1): learned queries cross-attend to the latents."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from perceiver_dist.model.attention import CrossAttend, LatentTokens
from perceiver_dist.model.layers import LearnedArrays


class Decoder(nn.Module):
    """Decoder with one learned query per source and one cross-attend that all sources share.

    Queries do not interact, so a source's result does not depend on the other sources.

    Args:
        width: Latent width D; queries, keys and values have as many channels.
        sources: Names of the sources.
    """

    def __init__(self, width: int, sources: Iterable[str]) -> None:
        super().__init__()
        self.queries = LearnedArrays(dict.fromkeys(sources, (width,)))
        self.cross_attend = CrossAttend(width, width)

    def forward(self, latents: Tensor) -> dict[str, Tensor]:
        """Read the latents with the queries of all sources, so that every step uses every parameter.

        Args:
            latents: (B, N, D).

        Returns:
            (B, D) by source.
        """
        queries: dict[str, Tensor] = self.queries()
        # Stacked as N queries, so that one cross-attend serves all sources.
        stacked = torch.stack(list(queries.values())).expand(latents.shape[0], -1, -1)
        read: Tensor = self.cross_attend(stacked, LatentTokens(latents))
        return dict(zip(queries, read.unbind(dim=1), strict=True))
