"""What data and model agree on: the modalities, the array each one is decoded to, and how it becomes tokens.

`pipelines` decodes every sample to the array described here (`array_shape`, `array_dtype`), and
`perceiver_dist.model` cuts that array into a grid of tokens (`grid`, `content_channels`). Arrays stay small
integers until they are on the training device; the model scales them to [-1, 1] there. Point clouds alone are
fp32 coordinates, from which the model computes the points' features on the device.

Nothing is imported but the standard library: this module is at the bottom of both packages.
"""

from dataclasses import dataclass
from math import inf, prod
from typing import Literal, get_args

from perceiver_dist.errors import UserError

PositionKind = Literal["fourier", "learned"]
PixelScale = Literal["symmetric", "imagenet"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _check_position(name: str, kind: str, channels: int) -> None:
    kinds = get_args(PositionKind)
    _require(kind in kinds, f"{name}: position is {kind!r}, must be one of {', '.join(kinds)}")
    _require(channels > 0, f"{name}: position_channels is {channels}, must be positive")


@dataclass(frozen=True)
class ImageInput:
    """Still images: the shorter side resized, the centre cropped, then `patch` x `patch` pixels per token.

    Attributes:
        height: Pixels after resizing. 28 is Fashion-MNIST's size, the default data; the paper uses 224.
        width: Pixels after resizing.
        channels: 1 for grey, 3 for RGB. 3 by default, so that any picture fits.
        patch: Pixels per side of one token. 1: every pixel is a token, as in the paper (4.1).
        bands: Fourier bands K per axis; the paper uses 64 at 224 pixels.
        max_frequency: The paper's mu, twice the highest frequency; None takes the number of tokens on the
            axis, which is the Nyquist rate of the grid and the paper's choice on ImageNet.
        pixel_scale: How pixels become numbers. "symmetric": 0 to 255 become -1 to 1. "imagenet": minus the mean
            colour of ImageNet, divided by its standard deviation, as published Perceiver IO weights need.
        position: What tells a token where it is. "fourier": sines and cosines, as in the paper's main results.
            "learned": a vector for each place, which begins as noise.
        position_channels: Channels of a learned position; 128 as in the authors' code. Without effect on
            "fourier".
        permutation_seed: A seed puts the tokens into one fixed random order, as the paper does with the pixels of
            its permuted ImageNet; null, the default, leaves them in the order of the grid. Fourier positions stay
            with their tokens: only rounding differs. Learned ones belong to the places of the new order.
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
        """Check what can be checked without data.

        Raises:
            UserError: The sizes are not positive, the patch does not divide them, channels is not 1 or 3, or
                position or pixel_scale is unknown or does not go with channels.
        """
        _require(
            self.patch > 0 and min(self.height, self.width) > 0 and self.bands > 0,
            f"image: height {self.height}, width {self.width}, patch {self.patch} and bands {self.bands} "
            "must be positive",
        )
        _require(
            self.height % self.patch == 0 and self.width % self.patch == 0,
            f"image: patch {self.patch} must divide height {self.height} and width {self.width}",
        )
        _require(self.channels in (1, 3), f"image: channels is {self.channels}, must be 1 (grey) or 3 (RGB)")
        scales = get_args(PixelScale)
        _require(
            self.pixel_scale in scales,
            f"image: pixel_scale is {self.pixel_scale!r}, must be one of {', '.join(scales)}",
        )
        _require(
            self.pixel_scale != "imagenet" or self.channels == 3,
            f"image: pixel_scale imagenet is for 3 channels, channels is {self.channels}: take 3, or symmetric",
        )
        _check_position("image", self.position, self.position_channels)

    @property
    def array_shape(self) -> tuple[int, ...]:
        """(height, width, channels) of one decoded image."""
        return (self.height, self.width, self.channels)

    @property
    def array_dtype(self) -> str:
        """Numpy name of the decoded array's type."""
        return "uint8"

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens along each axis: (rows, columns)."""
        return (self.height // self.patch, self.width // self.patch)

    @property
    def content_channels(self) -> int:
        """Values of one token before position features: a patch's pixels."""
        return self.patch * self.patch * self.channels


@dataclass(frozen=True)
class AudioInput:
    """Mono sound: resampled, a window of fixed length, cut into raw segments or made a log-mel spectrogram (paper 4.2).

    Attributes:
        sample_rate: Samples per second after resampling. The paper uses 48,000; 8,000 suffices here.
        samples: Window length in samples; a multiple of `segment`. Shorter sounds are padded with silence.
        segment: Samples per token, 128 in the paper; of a spectrogram, samples from one column to the next.
        mel_bands: Frequency bands of a log-mel spectrogram, whose every value is a token; null for raw sound. 80 with
            segments of 1,024 give the paper's 4,800 inputs for its 61,440 samples.
        bands: Fourier bands K of the time axis.
        max_frequency: The paper's mu; None takes the number of tokens.
        position: "fourier" or "learned", as for images.
        position_channels: Channels of a learned position.
        permutation_seed: Puts the tokens into one fixed random order, as for images.
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
        """Check what can be checked without data.

        Raises:
            UserError: A size is not positive, the segment does not divide the window or is odd for a spectrogram, or
                the position is unknown.
        """
        _require(
            min(self.sample_rate, self.samples, self.segment, self.bands) > 0,
            f"audio: sample_rate {self.sample_rate}, samples {self.samples}, segment {self.segment} and "
            f"bands {self.bands} must be positive",
        )
        _require(
            self.samples % self.segment == 0,
            f"audio: segment {self.segment} must divide samples {self.samples}",
        )
        _require(
            self.mel_bands is None or (self.mel_bands > 0 and self.segment % 2 == 0),
            f"audio: mel_bands is {self.mel_bands} and segment {self.segment}; a spectrogram needs bands, and segments "
            "of an even number of samples",
        )
        _check_position("audio", self.position, self.position_channels)

    @property
    def array_shape(self) -> tuple[int, ...]:
        """(samples,) of one decoded window."""
        return (self.samples,)

    @property
    def array_dtype(self) -> str:
        """Numpy name of the decoded array's type."""
        return "int16"

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens along each axis: (segments,), or (segments, bands) of a spectrogram."""
        segments = self.samples // self.segment
        return (segments,) if self.mel_bands is None else (segments, self.mel_bands)

    @property
    def content_channels(self) -> int:
        """Values of one token before position features: a segment's samples, or the level of one band."""
        return self.segment if self.mel_bands is None else 1


@dataclass(frozen=True)
class VideoInput:
    """Video clips: frames at a fixed rate, resized, centre cropped, cut into space-time patches (paper 4.2).

    Attributes:
        frames: Frames in a window. The paper uses 32; 8 keeps the default run small.
        frames_per_second: Rate at which frames are taken. The paper uses 25.
        height: Pixels after resizing.
        width: Pixels after resizing.
        channels: 1 for grey, 3 for RGB.
        patch: Frames, rows and columns of one token; (2, 8, 8) in the paper.
        bands: Fourier bands K per axis; 16 in the paper.
        max_frequency: The paper's mu; None takes the number of tokens on each axis.
        position: "fourier" or "learned", as for images.
        position_channels: Channels of a learned position.
        permutation_seed: Puts the tokens into one fixed random order, as for images.
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
        """Check what can be checked without data.

        Raises:
            UserError: A size is not positive, the patch does not divide it, channels is not 1 or 3, or the position
                is unknown.
        """
        sizes = (self.frames, self.height, self.width)
        _require(
            min(*sizes, *self.patch, self.bands) > 0 and self.frames_per_second > 0,
            f"video: window {sizes}, patch {self.patch}, bands {self.bands} and frames_per_second "
            f"{self.frames_per_second} must be positive",
        )
        _require(
            all(size % step == 0 for size, step in zip(sizes, self.patch, strict=True)),
            f"video: patch {self.patch} must divide (frames, height, width) {sizes}",
        )
        _require(self.channels in (1, 3), f"video: channels is {self.channels}, must be 1 (grey) or 3 (RGB)")
        _check_position("video", self.position, self.position_channels)

    @property
    def array_shape(self) -> tuple[int, ...]:
        """(frames, height, width, channels) of one decoded window."""
        return (self.frames, self.height, self.width, self.channels)

    @property
    def array_dtype(self) -> str:
        """Numpy name of the decoded array's type."""
        return "uint8"

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens along each axis: (time, rows, columns)."""
        return (self.frames // self.patch[0], self.height // self.patch[1], self.width // self.patch[2])

    @property
    def content_channels(self) -> int:
        """Values of one token before position features: a patch's pixels."""
        return prod(self.patch) * self.channels


@dataclass(frozen=True)
class PointCloudInput:
    """Point clouds: points from a cloud or the surface of a mesh, each one a token (paper 4.3).

    A token is its own position, so the Fourier features are made from the sample's coordinates and are its content.

    Attributes:
        points: Points of a sample, drawn anew in each epoch. The paper uses about 2,000; 512 suits a laptop.
        bands: Fourier bands K per axis; 64 in the paper.
        max_frequency: The paper's mu, twice the highest frequency; 2240 in the paper, ten times that of its images.
            There is no grid to take it from. 16 was no worse than less and better than 32 on some hundred clouds.
        normalise: Whether a cloud is moved to mean 0 and scaled until its largest coordinate is 1 or -1, as in the
            paper. Set it to false where size and place matter and coordinates lie between -1 and 1 already.
        scale_jitter: In training the distance of each point from the cloud's mean is multiplied by a number drawn
            from 1 - scale_jitter to 1 + scale_jitter. 0.01 is the paper's; 0 switches it off.
    """

    points: int = 512
    bands: int = 8
    max_frequency: float = 16.0
    normalise: bool = True
    scale_jitter: float = 0.01

    def __post_init__(self) -> None:
        """Check what can be checked without data.

        Raises:
            UserError: A size is not positive, max_frequency is below 2, or scale_jitter is not from 0 to below 1.
        """
        _require(
            min(self.points, self.bands) > 0,
            f"points: points {self.points} and bands {self.bands} must be positive",
        )
        _require(
            2 <= self.max_frequency < inf,
            f"points: max_frequency is {self.max_frequency}, must be at least 2, twice the lowest frequency",
        )
        _require(
            0 <= self.scale_jitter < 1,
            f"points: scale_jitter is {self.scale_jitter}, must be at least 0 and below 1",
        )

    @property
    def array_shape(self) -> tuple[int, ...]:
        """(points, axes) of one decoded cloud."""
        return (self.points, 3)

    @property
    def array_dtype(self) -> str:
        """Numpy name of the decoded array's type: in fp32 the paper's highest frequency has its phase to 1e-4."""
        return "float32"

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens along each axis: (points,), a list without an order."""
        return (self.points,)

    @property
    def content_channels(self) -> int:
        """Values of one token: the coordinates, and K sines and K cosines of each."""
        return 3 * (2 * self.bands + 1)

    @property
    def position(self) -> Literal["fourier"]:
        """Points have no places that a position could be learned for."""
        return "fourier"

    @property
    def position_channels(self) -> int:
        """Channels of a learned position: none."""
        return 0

    @property
    def permutation_seed(self) -> None:
        """Points have no order that could be changed."""
        return


ModalityInput = ImageInput | AudioInput | VideoInput | PointCloudInput

MODALITIES: tuple[str, ...] = ("image", "audio", "video", "points")
"""Names of the modalities, in the order in which the model concatenates their tokens."""


def tokens(spec: ModalityInput) -> int:
    """Number of tokens M that one sample of this modality gives.

    Args:
        spec: What the modality is decoded to.
    """
    return prod(spec.grid)
