"""Options of the model: sizes, weight sharing and modalities, validated on construction."""

from dataclasses import dataclass
from math import sqrt
from typing import Literal, get_args

from perceiver_dist.errors import UserError
from perceiver_dist.modalities import (
    MODALITIES,
    AudioInput,
    ImageInput,
    ModalityInput,
    PointCloudInput,
    VideoInput,
)
from perceiver_dist.range_checks import check_range

CrossAttendSharing = Literal["all_but_first", "all", "none"]
Readout = Literal["mean", "decoder"]
CrossAttentionPath = Literal["auto", "dense", "factored", "separable"]


@dataclass(frozen=True)
class ModelConfig:
    """Sizes, weight sharing and inputs of a Perceiver.

    Attributes:
        latents: Number of latent vectors N. 32 trains in minutes on a laptop; the paper uses 512.
        width: Channels D of a latent. 64 for the same reason; the paper uses 1024.
        cross_attends: Number T of cross-attends, each followed by a latent block. 2 is the smallest number
            that iterates; the paper uses 8 on ImageNet and 2 on AudioSet and ModelNet40.
        latent_block_repeats: How often the latent block runs after each cross-attend, with the same weights. 1 as in
            the paper; Perceiver IO's ImageNet model has one cross-attend and runs one block 8 times.
        self_attends_per_block: Latent self-attention layers in a block. 2 keeps the default model small; the paper
            uses 6 on ImageNet and ModelNet40, 8 on AudioSet.
        heads: Attention heads H of the latent self-attention; must divide width. 4 gives 16 channels per head at the
            default width; the authors use 8. Cross-attention always has one head, as in the paper.
        share_cross_attends: Which cross-attends share weights. "all_but_first" is the paper's choice on ImageNet,
            its best in table 7: the first has its own weights, all later ones share one set. "all": one set for all.
            "none": each has its own, as on the paper's AudioSet.
        share_latent_blocks: Whether all T latent blocks share their weights. True as on the paper's ImageNet; the
            paper does not share them on AudioSet.
        readout: Input of the linear head of each source. "mean": the mean of the latents, as in the paper. "decoder":
            one cross-attend to the latents with a learned query per source, as in Perceiver IO; sources share the
            decoder's other weights.
        modality_channels: Channels of the shortest learned modality encoding; those of other modalities are longer,
            which pads all tokens to one channel count C. 4 follows from the paper's 487 channels on AudioSet. Without
            effect with one modality, which has no encoding.
        activation_checkpointing: Recompute each layer in the backward pass instead of keeping its activations: about
            a third more compute, for the memory of one layer instead of all. False, since small models fit. The paper
            does not mention it.
        cross_attention: How cross-attention is computed; all ways compute the same function (see `attention.py`).
            "factored" suits CPUs, "dense" GPUs, "separable" large grids: in tiles on CPUs, by Triton kernels on CUDA.
            "auto" chooses by device and grid size (reasons in `attention_path`).
        initial_logit_std: Standard deviation of a new model's logits, by the scale of the heads' initial weights. At
            0.25 the first loss is that of guessing within 2%, at any depth. 0 makes the heads zero, as the authors'
            published code does for `readout` mean. null gives heads the scale of other layers: the first loss of the
            paper's ImageNet model is then 56 instead of 6.9.
        image: Image input, or null. The paper's ImageNet: 224 x 224 x 3, patch 1, 64 bands.
        audio: Audio input, or null. The paper's AudioSet: 61,440 samples in segments of 128.
        video: Video input, or null. The paper's AudioSet: 32 frames of 224 x 224, patch (2, 8, 8), 16 bands.
        points: Point cloud input, or null. The paper's ModelNet40: about 2,000 points, 64 bands, mu 2240.
    """

    latents: int = 32
    width: int = 64
    cross_attends: int = 2
    latent_block_repeats: int = 1
    self_attends_per_block: int = 2
    heads: int = 4
    share_cross_attends: CrossAttendSharing = "all_but_first"
    share_latent_blocks: bool = True
    readout: Readout = "mean"
    modality_channels: int = 4
    activation_checkpointing: bool = False
    cross_attention: CrossAttentionPath = "auto"
    initial_logit_std: float | None = 0.25
    image: ImageInput | None = None
    audio: AudioInput | None = None
    video: VideoInput | None = None
    points: PointCloudInput | None = None

    def __post_init__(self) -> None:
        """Validate what can be checked without data.

        Raises:
            UserError: A number is outside its range, heads does not divide width, or a choice is unknown.
        """
        sizes = (
            "latents",
            "width",
            "cross_attends",
            "latent_block_repeats",
            "self_attends_per_block",
            "heads",
        )
        check_range(self, "model.", (*sizes, "modality_channels"), at_least=1)
        if self.initial_logit_std is not None:
            check_range(self, "model.", ["initial_logit_std"], at_least=0)
        if self.width % self.heads:
            raise UserError(
                f"model.heads is {self.heads}, which does not divide model.width {self.width}: "
                "set width to a multiple of heads"
            )
        choices = {
            "share_cross_attends": CrossAttendSharing,
            "readout": Readout,
            "cross_attention": CrossAttentionPath,
        }
        for name, choice in choices.items():
            if getattr(self, name) not in get_args(choice):
                raise UserError(
                    f"model.{name} is {getattr(self, name)!r}, must be one of {', '.join(get_args(choice))}"
                )

    @property
    def modalities(self) -> dict[str, ModalityInput]:
        """The configured modalities by name, in the order of `MODALITIES`."""
        specs = {name: getattr(self, name) for name in MODALITIES}
        return {name: spec for name, spec in specs.items() if spec is not None}

    @property
    def cross_attend_order(self) -> tuple[int, ...]:
        """Index of the distinct cross-attend that each of the T iterations uses, for example (0, 1, 1, 1)."""
        first_shared = {"all": 0, "all_but_first": 1, "none": self.cross_attends}[self.share_cross_attends]
        return tuple(min(step, first_shared) for step in range(self.cross_attends))

    @property
    def self_attends(self) -> int:
        """Number of latent self-attention layers that a forward pass runs, those that share weights among them."""
        return self.cross_attends * self.latent_block_repeats * self.self_attends_per_block

    @property
    def latent_block_order(self) -> tuple[int, ...]:
        """Index of the distinct latent block that each of the T iterations uses, for example (0, 0, 0, 0)."""
        return tuple(0 if self.share_latent_blocks else step for step in range(self.cross_attends))

    @property
    def initial_output_std(self) -> float:
        """Approximate standard deviation, in a new model, of the channels that the heads read.

        A latent layer adds nearly the same vector to all latents: they differ little, so their mean is that of one. Of
        its variance attention adds 1 (weights of variance 1 / fan-in, normalised input) and the dense block 0.425, the
        mean square of a GELU of a standard normal. Layers with weights of their own add variances. Repetitions of the
        same weights add the same vector, so R of them have R times the standard deviation: at the paper's ImageNet
        setting 8 * sqrt(6 * 1.425) = 23, where 20 was measured. A decoder is one layer.
        """
        layer = 1.425
        if self.readout == "decoder":
            return sqrt(layer)
        blocks = len(set(self.latent_block_order))
        repeats = self.latent_block_repeats * self.cross_attends / blocks
        return repeats * sqrt(blocks * self.self_attends_per_block * layer)
