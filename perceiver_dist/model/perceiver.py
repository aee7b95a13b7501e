"""The Perceiver (Jaegle et al. 2021, arXiv 2103.03206): latents that read tokens, then think, T times."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perceiver_dist.errors import InternalError, UserError
from perceiver_dist.model.attention import AttendableTokens, CrossAttend, DenseTokens, attention_path
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
from perceiver_dist.model.layers import LearnedArrays, SelfAttend, linear, no_effect
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.readout import Decoder

NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class Perceiver(nn.Module):
    """One set of weights for all modalities and sources, with a linear head per source.

    Weights depend on torch's random state when it is built; the forward pass is without randomness.

    Args:
        config: Sizes, sharing and modalities.
        heads: Number of classes of each source, by source name.

    Raises:
        UserError: No modality is configured, or a source's name is not one that torch accepts for a module.
        InternalError: There is no head, or a head has no classes.
    """

    def __init__(self, config: ModelConfig, heads: Mapping[str, int]) -> None:
        super().__init__()
        _check_heads(heads)
        self.config = config
        channels = token_channels(config)
        self.tokenizers = nn.ModuleDict(
            {name: Tokenizer(name, spec) for name, spec in config.modalities.items()}
        )
        encodings = encoding_channels(config)
        self.encodings = LearnedArrays({name: (length,) for name, length in encodings.items() if length})
        self.positions = LearnedArrays(learned_positions(config))
        # The paper's init: standard deviation 0.02, cut at +-2.
        self.latents = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(config.latents, config.width), std=0.02, a=-2.0, b=2.0)
        )
        self.cross_attends = nn.ModuleList(
            CrossAttend(config.width, channels) for _ in set(config.cross_attend_order)
        )
        self.latent_blocks = nn.ModuleList(
            nn.ModuleList(
                SelfAttend(config.width, config.heads) for _ in range(config.self_attends_per_block)
            )
            for _ in set(config.latent_block_order)
        )
        self.decoder = Decoder(config.width, heads) if config.readout == "decoder" else None
        self.heads = nn.ModuleDict(
            {source: linear(config.width, classes) for source, classes in heads.items()}
        )

    def forward(
        self,
        arrays: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        source: str,
        masked: Mapping[str, Tensor] = NOTHING,
    ) -> Tensor:
        """Logits of a batch of one source.

        What is not present in a sample has no influence on that sample's logits. A sample with nothing
        present gets the finite logits of the learned latents and biases alone.

        Args:
            arrays: (B, *array_shape) per modality the source has, as decoded: uint8, int16 or fp32.
            present: (B,) bool per modality; one it does not name is there in every sample.
            source: Whose head to use.
            masked: (B, *grid) bool by modality, tokens that are shown the mean content of their modality instead of
                their own, as SpecAugment does.

        Returns:
            (B, classes of the source) in the parameters' dtype.

        Raises:
            InternalError: The source or a modality is unknown, there is no array, or an array or mask has another
                shape or dtype than configured.
        """
        logits, _ = self.logits_and_latents(arrays, present, source, masked)
        return logits

    def logits_and_latents(
        self,
        arrays: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        source: str,
        masked: Mapping[str, Tensor] = NOTHING,
    ) -> tuple[Tensor, Tensor]:
        """Logits of a batch, and the latents after the last block that they are read from.

        Args:
            arrays: As `forward` takes them.
            present: As `forward` takes them.
            source: Whose head to use.
            masked: As `forward` takes it.

        Returns:
            (B, classes of the source), and (B, N, D).

        Raises:
            InternalError: As `forward` raises it.
        """
        names = self._modalities_of(arrays, source)
        encodings: dict[str, Tensor] = self.encodings()
        positions: dict[str, Tensor] = self.positions()
        tokens = self.tokenize(arrays, names, encodings, positions, masked)
        batch = tokens[0].content.shape[0]
        readable = self._attendable(tokens, read_presence(present, names, batch))
        latents = self.encode(readable, batch)
        reads = (
            dict.fromkeys(self.heads, latents.mean(dim=1)) if self.decoder is None else self.decoder(latents)
        )
        logits: dict[str, Tensor] = {name: head(reads[name]) for name, head in self.heads.items()}
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
        masked: Mapping[str, Tensor] = NOTHING,
    ) -> list[Tokens]:
        """Turn arrays into tokens.

        Args:
            arrays: (B, *array_shape) by modality, as `forward` takes them.
            names: The modalities, in the order of `tokenizers`.
            encodings: (E,) by modality, what `self.encodings()` gives.
            positions: (M, P) by modality, what `self.positions()` gives.
            masked: (B, *grid) bool by modality, as `forward` takes it.

        Returns:
            The tokens of each modality.
        """
        return [
            self.tokenizers[name](arrays[name], encodings.get(name), positions.get(name), masked.get(name))
            for name in names
        ]

    def encode(self, readable: AttendableTokens, batch: int) -> Tensor:
        """Let the latents read the tokens and think.

        Args:
            readable: The tokens of B samples.
            batch: B.

        Returns:
            (B, N, D), the latents after the last block.
        """
        latents = self.latents.expand(batch, -1, -1)
        orders = zip(self.config.cross_attend_order, self.config.latent_block_order, strict=True)
        for cross_attend, block in orders:
            latents = self._run(self.cross_attends[cross_attend], latents, readable)
            for layer in [*self.latent_blocks[block].children()] * self.config.latent_block_repeats:
                latents = self._run(layer, latents)
        return latents

    def _modalities_of(self, arrays: Mapping[str, Tensor], source: str) -> list[str]:
        if source not in self.heads:
            raise InternalError(f"source {source!r} has no head, expected one of: {', '.join(self.heads)}")
        unknown = [name for name in arrays if name not in self.tokenizers]
        if unknown or not arrays:
            raise InternalError(
                f"source {source!r} gives the arrays {list(arrays)}, the model reads "
                f"{', '.join(self.tokenizers)}: configure model.<modality> for each, and give at least one"
            )
        return [name for name in self.tokenizers if name in arrays]

    def _attendable(self, tokens: list[Tokens], presence: Presence | None) -> AttendableTokens:
        path = attention_path(self.config, self.latents.device.type)
        if path == "dense":
            return DenseTokens(tokens, presence, self.latents.dtype)
        return FactoredTokens(tokens, presence, by_axis=path == "separable")

    def _run(self, layer: nn.Module, *inputs: Tensor | AttendableTokens) -> Tensor:
        if not (self.config.activation_checkpointing and torch.is_grad_enabled()):
            result: Tensor = layer(*inputs)
            return result
        # The reentrant kind breaks ZeRO on weights that are used more than once in a forward pass.
        recomputed: Tensor = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
        return recomputed


def _check_heads(heads: Mapping[str, int]) -> None:
    if not heads:
        raise InternalError("the model has no head: give at least one source and its number of classes")
    for source, classes in heads.items():
        if classes < 1:
            raise InternalError(f"source {source!r} has {classes} classes, must be at least 1")
        if not source or "." in source or hasattr(nn.ModuleDict(), source):
            raise UserError(
                f"source name {source!r} cannot name a module in torch (empty, with a dot, or a method's name): "
                "rename the source"
            )
