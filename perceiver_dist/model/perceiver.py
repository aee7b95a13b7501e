"""The Perceiver (Jaegle et al. 2021, arXiv 2103.03206).

Latents (B, N, D) read the tokens by cross-attention and pass through a block of self-attention layers, T times. A
linear head per source reads their mean, or the output of a decoder. Cross-attention is in attention.py.
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from perceiver_dist.errors import InternalError, UserError
from perceiver_dist.model.attention import (
    AttendableTokens,
    CrossAttend,
    DenseTokens,
    ForwardObserver,
    attention_path,
)
from perceiver_dist.model.factored import FactoredTokens
from perceiver_dist.model.inputs import (
    Presence,
    Tokenizer,
    Tokens,
    encoding_channels,
    learned_positions,
    read_presence,
    token_channels,
)
from perceiver_dist.model.layers import LatentBlock, LearnedArrays, linear, no_effect, run
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.precision import compute_dtype
from perceiver_dist.model.readout import Decoder

NO_MASKS: Mapping[str, Tensor] = MappingProxyType({})
"""Default of `masked`: no token is masked."""


class Perceiver(nn.Module):
    """Perceiver with one set of weights for all modalities and sources, and a linear head per source.

    Initial weights depend on torch's random state; the forward pass is deterministic. What training drops at random is
    an argument of it.

    Args:
        config: Sizes, weight sharing and modalities.
        heads: Number of classes by source name.

    Attributes:
        observer: Measures the forward passes; None for none.

    Raises:
        UserError: No modality is configured, or torch does not accept a source's name as the name of a module.
        InternalError: There is no head, or a head has no classes.
    """

    def __init__(self, config: ModelConfig, heads: Mapping[str, int]) -> None:
        super().__init__()
        _check_heads(heads)
        self.config = config
        self.observer: ForwardObserver | None = None
        channels = token_channels(config)
        self.tokenizers = self._build_tokenizers()
        encodings = encoding_channels(config)
        self.encodings = LearnedArrays({name: (length,) for name, length in encodings.items() if length})
        self.positions = LearnedArrays(learned_positions(config))
        # The paper's initialisation: truncated normal with standard deviation 0.02, cut at +-2.
        self.latents = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(config.latents, config.width), std=0.02, a=-2.0, b=2.0)
        )
        self.cross_attends = nn.ModuleList(
            CrossAttend(config.width, channels) for _ in set(config.cross_attend_order)
        )
        self.latent_blocks = nn.ModuleList(
            LatentBlock(
                config.self_attends_per_block, config.width, config.heads, config.activation_checkpointing
            )
            for _ in set(config.latent_block_order)
        )
        self.decoder = Decoder(config.width, heads) if config.readout == "decoder" else None
        self.heads = nn.ModuleDict(
            {source: linear(config.width, classes, _head_scale(config)) for source, classes in heads.items()}
        )

    def _build_tokenizers(self) -> nn.ModuleDict:
        return nn.ModuleDict({name: Tokenizer(name, spec) for name, spec in self.config.modalities.items()})

    def forward(
        self,
        arrays: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        source: str,
        masked: Mapping[str, Tensor] = NO_MASKS,
        kept: Tensor | None = None,
        depth: Tensor | None = None,
    ) -> Tensor:
        """Return the logits of a batch of one source.

        The array of a modality that a sample lacks has no influence on its logits. A sample without any modality gets
        the finite logits of learned latents and biases alone.

        Args:
            arrays: (B, *array_shape) for each modality of the source, as decoded: uint8, int16 or fp32.
            present: (B,) bool by modality, best on the CPU; every sample has a modality that is not named.
            source: Name of the source whose head is used.
            masked: (B, *grid) bool by modality, tokens whose content is replaced by the mean content of their
                modality in that sample, as in SpecAugment.
            kept: (n,) int64, numbers of the latents that take part; None for all N.
            depth: (layers, B), by how much each latent self-attention layer updates each sample, in the order in which
                they run (`ModelConfig.self_attends`); None for 1.

        Returns:
            (B, classes of the source) in the parameters' dtype.

        Raises:
            InternalError: The source or a modality is unknown, there is no array, or an array or presence mask does not
                have the configured shape or dtype.
        """
        logits, _ = self.logits_and_latents(arrays, present, source, masked, kept, depth)
        return logits

    def logits_and_latents(
        self,
        arrays: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        source: str,
        masked: Mapping[str, Tensor] = NO_MASKS,
        kept: Tensor | None = None,
        depth: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the logits of a batch and the latents after the last block, from which they are read.

        Args:
            arrays: As for `forward`.
            present: As for `forward`.
            source: As for `forward`.
            masked: As for `forward`.
            kept: As for `forward`.
            depth: As for `forward`.

        Returns:
            (B, classes of the source), and (B, N, D).

        Raises:
            InternalError: As for `forward`.
        """
        names = self._modalities_of(arrays, source)
        encodings: dict[str, Tensor] = self.encodings()
        positions: dict[str, Tensor] = self.positions()
        tokens = self.tokenize(arrays, names, encodings, positions, masked)
        batch = tokens[0].content.shape[0]
        presence = read_presence(present, names, batch, self.latents.device)
        attendable = self._attendable(tokens, presence)
        if self.observer is not None:
            attendable = self.observer.over(attendable, tokens, presence)
        latents = self.encode(attendable, batch, kept, depth)
        if self.observer is not None:
            self.observer.saw_latents(latents)
        pooled = (
            dict.fromkeys(self.heads, latents.mean(dim=1)) if self.decoder is None else self.decoder(latents)
        )
        # All heads run, so that the modules of every step are the same (see `no_effect`).
        logits: dict[str, Tensor] = {name: head(pooled[name]) for name, head in self.heads.items()}
        unused = [value for name, value in logits.items() if name != source]
        unused += [
            value for part in (encodings, positions) for name, value in part.items() if name not in names
        ]
        return logits[source] + no_effect(unused, like=latents), latents

    def tokenize(
        self,
        arrays: Mapping[str, Tensor],
        names: list[str],
        encodings: Mapping[str, Tensor],
        positions: Mapping[str, Tensor],
        masked: Mapping[str, Tensor] = NO_MASKS,
    ) -> list[Tokens]:
        """Turn arrays into tokens.

        Args:
            arrays: (B, *array_shape) by modality, as for `forward`.
            names: The modalities, in the order of `tokenizers`.
            encodings: (E,) by modality, from `self.encodings()`.
            positions: (M, P) by modality, from `self.positions()`.
            masked: (B, *grid) bool by modality, as for `forward`.

        Returns:
            The tokens of each modality.
        """
        return [
            self.tokenizers[name](arrays[name], encodings.get(name), positions.get(name), masked.get(name))
            for name in names
        ]

    def encode(
        self,
        tokens: AttendableTokens,
        batch: int,
        kept: Tensor | None = None,
        depth: Tensor | None = None,
    ) -> Tensor:
        """Run the T iterations of cross-attend and latent block.

        Args:
            tokens: The tokens of B samples.
            batch: B.
            kept: As for `forward`.
            depth: As for `forward`.

        Returns:
            (B, N, D), the latents after the last block.
        """
        # Cast after expanding, so that the gradient is summed over the samples in fp32.
        initial = self.latents if kept is None else self.latents[kept]
        latents = initial.expand(batch, -1, -1).to(compute_dtype(self.latents))
        # One piece for each run of a block.
        pieces = iter(() if depth is None else torch.split(depth, self.config.self_attends_per_block))
        orders = zip(self.config.cross_attend_order, self.config.latent_block_order, strict=True)
        for cross_attend, block in orders:
            checkpointing = self.config.activation_checkpointing
            latents = run(self.cross_attends[cross_attend], latents, tokens, checkpointing=checkpointing)
            for _ in range(self.config.latent_block_repeats):
                latents = self.latent_blocks[block](latents, next(pieces, None))
        return latents

    def _modalities_of(self, arrays: Mapping[str, Tensor], source: str) -> list[str]:
        if source not in self.heads:
            raise InternalError(f"source {source!r} has no head, expected one of: {', '.join(self.heads)}")
        unknown = [name for name in arrays if name not in self.tokenizers]
        if unknown or not arrays:
            raise InternalError(
                f"source {source!r} has the arrays {list(arrays)}, the model reads "
                f"{', '.join(self.tokenizers)}: configure model.<modality> for each, and pass at least one"
            )
        return [name for name in self.tokenizers if name in arrays]

    def _attendable(self, tokens: list[Tokens], presence: Presence | None) -> AttendableTokens:
        path = attention_path(self.config, self.latents.device.type)
        if path == "dense":
            return DenseTokens(tokens, presence, compute_dtype(self.latents))
        return FactoredTokens(tokens, presence, by_axis=path == "separable")


def _head_scale(config: ModelConfig) -> float:
    """Return the factor of the heads' initial weights for which logits have `initial_logit_std`."""
    if config.initial_logit_std is None:
        return 1.0
    return config.initial_logit_std / config.initial_output_std


def _check_heads(heads: Mapping[str, int]) -> None:
    if not heads:
        raise InternalError("the model has no head: pass at least one source and its number of classes")
    for source, classes in heads.items():
        if classes < 1:
            raise InternalError(f"source {source!r} has {classes} classes, must be at least 1")
        if not source or "." in source or hasattr(nn.ModuleDict(), source):
            raise UserError(
                f"source name {source!r} cannot name a module in torch (empty, with a dot, or a method's name): "
                "rename the source"
            )
