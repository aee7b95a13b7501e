"""Modalities: the array that each one is decoded to, and its grid of tokens.

This is the contract between data and model. `pipelines` decodes every sample to the array described here
(`array_shape`, `array_dtype`), and `perceiver_dist.model` cuts that array into a grid of tokens (`grid`,
`content_channels`). Arrays stay small integers until they are on the training device, where the model scales them.
Only point clouds are fp32: coordinates, from which the model computes Fourier features on the device.

Both packages import this module, so it imports only the standard library and the two modules below it.
"""

from dataclasses import dataclass
from math import inf, prod
from typing import Literal, get_args

from perceiver_dist.errors import UserError
from perceiver_dist.range_checks import check_range

PositionKind = Literal["fourier", "learned"]
PixelScale = Literal["symmetric", "imagenet"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _check_position(prefix: str, kind: str) -> None:
    kinds = get_args(PositionKind)
    _require(kind in kinds, f"{prefix}position is {kind!r}, must be one of {', '.join(kinds)}")


@dataclass(frozen=True)
class ImageInput:
    """Still images: resized and centre-cropped, then cut into tokens of `patch` x `patch` pixels.

    Attributes:
        height: Height in pixels after resizing. 28 matches Fashion-MNIST, the default data; the paper uses 224.
        width: Width in pixels after resizing.
        channels: 1 for grey, 3 for RGB. 3 by default, since RGB can hold any image.
        patch: Pixels per side of one token. With 1 every pixel is a token, as in the paper (4.1).
        bands: Fourier bands K per axis; the paper uses 64 at 224 pixels.
        max_frequency: The paper's mu, twice the highest frequency. Null uses the number of tokens on the axis, so
            that the highest frequency is the Nyquist frequency of the grid, as in the paper on ImageNet.
        pixel_scale: How pixels are scaled. "symmetric": 0 to 255 become -1 to 1. "imagenet": the mean colour of
            ImageNet is subtracted and its standard deviation divided out, as published Perceiver IO weights need.
        position: Position encoding of a token. "fourier": sines and cosines, as in the paper's main results.
            "learned": a learned vector per grid position, initialised with noise.
        position_channels: Channels of a learned position encoding; 128 as in the authors' code. No effect with
            "fourier".
        permutation_seed: Seed of one fixed random order of the tokens, as in the paper's permuted ImageNet; null, the
            default, keeps the order of the grid. Fourier positions move with their tokens, so only rounding differs.
            Learned positions belong to the places of the new order.
    """

    height: int = 28
    width: int = 28
    channels: int = 3
    patch: int = 1
    bands: int = 8
    max_frequency: float | None = None
    pixel_scale: PixelScale = "symmetric"
    position: PositionKind = "fourier"
    position_channels: int = 128
    permutation_seed: int | None = None

    def __post_init__(self) -> None:
        """Check the options that do not need data.

        Raises:
            UserError: A size is below 1, the patch does not divide height and width, channels is not 1 or 3,
                position or pixel_scale is unknown, or pixel_scale does not fit channels.
        """
        check_range(
            self, "model.image.", ["height", "width", "patch", "bands", "position_channels"], at_least=1
        )
        _require(
            self.height % self.patch == 0 and self.width % self.patch == 0,
            f"model.image.patch is {self.patch}, must divide height {self.height} and width {self.width}",
        )
        _require(
            self.channels in (1, 3), f"model.image.channels is {self.channels}, must be 1 (grey) or 3 (RGB)"
        )
        scales = get_args(PixelScale)
        _require(
            self.pixel_scale in scales,
            f"model.image.pixel_scale is {self.pixel_scale!r}, must be one of {', '.join(scales)}",
        )
        _require(
            self.pixel_scale != "imagenet" or self.channels == 3,
            f"model.image.pixel_scale is imagenet, which needs 3 channels, but channels is {self.channels}: "
            "set channels to 3, or pixel_scale to symmetric",
        )
        _check_position("model.image.", self.position)

    @property
    def array_shape(self) -> tuple[int, ...]:
        """(height, width, channels) of one decoded image."""
        return (self.height, self.width, self.channels)

    @property
    def array_dtype(self) -> str:
        """NumPy name of the decoded array's type."""
        return "uint8"

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens along each axis: (rows, columns)."""
        return (self.height // self.patch, self.width // self.patch)

    @property
    def content_channels(self) -> int:
        """Values of one token before the position encoding: a patch's pixels."""
        return self.patch * self.patch * self.channels


@dataclass(frozen=True)
class AudioInput:
    """Mono audio: resampled, cut to a window, then to raw segments or a log-mel spectrogram (paper 4.2).

    Attributes:
        sample_rate: Samples per second after resampling. The paper uses 48,000; 8,000 is enough for the demo data.
        samples: Window length in samples; a multiple of `segment`. Shorter audio is padded with silence.
        segment: Samples per token, 128 in the paper. With a spectrogram: hop length, from one column to the next.
        mel_bands: Frequency bands of a log-mel spectrogram, of which every value is a token; null for raw audio. 80
            bands with segments of 1,024 give the paper's 4,800 inputs for its 61,440 samples.
        bands: Fourier bands K per axis: time, and frequency of a spectrogram.
        max_frequency: The paper's mu; null uses the number of tokens on the axis.
        position: "fourier" or "learned", as for images.
        position_channels: Channels of a learned position encoding.
        permutation_seed: Seed of one fixed random order of the tokens, as for images.
    """

    sample_rate: int = 8000
    samples: int = 8192
    segment: int = 128
    mel_bands: int | None = None
    bands: int = 8
    max_frequency: float | None = None
    position: PositionKind = "fourier"
    position_channels: int = 128
    permutation_seed: int | None = None

    def __post_init__(self) -> None:
        """Check the options that do not need data.

        Raises:
            UserError: A size is below 1, the segment does not divide the window or is odd for a spectrogram, or the
                position is unknown.
        """
        sizes = ["sample_rate", "samples", "segment", "mel_bands", "bands", "position_channels"]
        check_range(self, "model.audio.", sizes, at_least=1)
        _require(
            self.samples % self.segment == 0,
            f"model.audio.segment is {self.segment}, must divide samples {self.samples}",
        )
        # A window of the spectrogram is two segments long and moves by one.
        _require(
            self.mel_bands is None or self.segment % 2 == 0,
            f"model.audio.segment is {self.segment}, must be even for a spectrogram (mel_bands {self.mel_bands})",
        )
        _check_position("model.audio.", self.position)

    @property
    def array_shape(self) -> tuple[int, ...]:
        """(samples,) of one decoded window."""
        return (self.samples,)

    @property
    def array_dtype(self) -> str:
        """NumPy name of the decoded array's type."""
        return "int16"

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens along each axis: (segments,), or (segments, mel_bands) of a spectrogram."""
        segments = self.samples // self.segment
        return (segments,) if self.mel_bands is None else (segments, self.mel_bands)

    @property
    def content_channels(self) -> int:
        """Values of one token before the position encoding: a segment's samples, or the level of one band."""
        return self.segment if self.mel_bands is None else 1


@dataclass(frozen=True)
class VideoInput:
    """Video clips: frames at a fixed rate, resized, centre-cropped and cut into space-time patches (paper 4.2).

    Attributes:
        frames: Frames in a window. The paper uses 32; 8 keeps the default run small.
        frames_per_second: Rate at which frames are sampled. The paper uses 25.
        height: Height in pixels after resizing.
        width: Width in pixels after resizing.
        channels: 1 for grey, 3 for RGB.
        patch: Frames, rows and columns of one token; (2, 8, 8) in the paper.
        bands: Fourier bands K per axis; 16 in the paper.
        max_frequency: The paper's mu; null uses the number of tokens on each axis.
        position: "fourier" or "learned", as for images.
        position_channels: Channels of a learned position encoding.
        permutation_seed: Seed of one fixed random order of the tokens, as for images.
    """

    frames: int = 8
    frames_per_second: float = 8.0
    height: int = 32
    width: int = 32
    channels: int = 3
    patch: tuple[int, int, int] = (2, 4, 4)
    bands: int = 4
    max_frequency: float | None = None
    position: PositionKind = "fourier"
    position_channels: int = 128
    permutation_seed: int | None = None

    def __post_init__(self) -> None:
        """Check the options that do not need data.

        Raises:
            UserError: A size is below 1, the patch does not divide the window, channels is not 1 or 3, or the
                position is unknown.
        """
        names = ["frames", "height", "width", "patch", "bands", "position_channels"]
        check_range(self, "model.video.", names, at_least=1)
        check_range(self, "model.video.", ["frames_per_second"], above=0)
        window = (self.frames, self.height, self.width)
        _require(
            all(size % step == 0 for size, step in zip(window, self.patch, strict=True)),
            f"model.video.patch is {self.patch}, must divide (frames, height, width) {window}",
        )
        _require(
            self.channels in (1, 3), f"model.video.channels is {self.channels}, must be 1 (grey) or 3 (RGB)"
        )
        _check_position("model.video.", self.position)

    @property
    def array_shape(self) -> tuple[int, ...]:
        """(frames, height, width, channels) of one decoded window."""
        return (self.frames, self.height, self.width, self.channels)

    @property
    def array_dtype(self) -> str:
        """NumPy name of the decoded array's type."""
        return "uint8"

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens along each axis: (time, rows, columns)."""
        return (self.frames // self.patch[0], self.height // self.patch[1], self.width // self.patch[2])

    @property
    def content_channels(self) -> int:
        """Values of one token before the position encoding: a patch's pixels."""
        return prod(self.patch) * self.channels


@dataclass(frozen=True)
class PointCloudInput:
    """Point clouds: points from a cloud or the surface of a mesh, each one a token (paper 4.3).

    The content of a token is its coordinates and their Fourier features, so it needs no other position encoding.

    Attributes:
        points: Points per sample, sampled anew in each epoch. The paper uses about 2,000; 512 suits a laptop.
        bands: Fourier bands K per axis; 64 in the paper.
        max_frequency: The paper's mu, twice the highest frequency; 2240 in the paper, ten times that of its images.
            No grid defines it. On a few hundred clouds 16 was no worse than smaller values and better than 32.
        normalise: Whether a cloud is centred at 0 and scaled until its largest absolute coordinate is 1, as in the
            paper. Set it to false where size and place matter and coordinates already lie between -1 and 1.
        scale_jitter: In training, the distance of each point from the cloud's mean is multiplied by a random factor
            between 1 - scale_jitter and 1 + scale_jitter. 0.01 as in the paper; 0 disables it.
    """

    points: int = 512
    bands: int = 8
    max_frequency: float = 16.0
    normalise: bool = True
    scale_jitter: float = 0.01

    def __post_init__(self) -> None:
        """Check the options that do not need data.

        Raises:
            UserError: A size is below 1, max_frequency is below 2 or infinite, or scale_jitter is not at least 0 and
                below 1.
        """
        check_range(self, "model.points.", ["points", "bands"], at_least=1)
        # The lowest frequency is 1, and max_frequency is twice the highest.
        check_range(self, "model.points.", ["max_frequency"], at_least=2, below=inf)
        check_range(self, "model.points.", ["scale_jitter"], at_least=0, below=1)

    @property
    def array_shape(self) -> tuple[int, ...]:
        """(points, axes) of one decoded cloud."""
        return (self.points, 3)

    @property
    def array_dtype(self) -> str:
        """NumPy name of the decoded array's type: fp32 keeps the phase of the paper's highest frequency to 1e-4."""
        return "float32"

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens along each axis: (points,), which have no order."""
        return (self.points,)

    @property
    def content_channels(self) -> int:
        """Values of one token: the three coordinates, and K sines and K cosines of each."""
        return 3 * (2 * self.bands + 1)

    @property
    def position(self) -> Literal["fourier"]:
        """Always "fourier": without a grid there are no positions to learn a vector for."""
        return "fourier"

    @property
    def position_channels(self) -> int:
        """0, since points have no learned position."""
        return 0

    @property
    def permutation_seed(self) -> None:
        """None, since points have no order to permute."""
        return


ModalityInput = ImageInput | AudioInput | VideoInput | PointCloudInput

MODALITIES: tuple[str, ...] = ("image", "audio", "video", "points")
"""Modality names, in the order in which the model concatenates their tokens."""


def tokens(spec: ModalityInput) -> int:
    """Return the number of tokens M of one sample.

    Args:
        spec: The modality's input options.
    """
    return prod(spec.grid)
