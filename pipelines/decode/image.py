"""Image decoding with Pillow: JPEG, PNG, WebP, AVIF, TIFF, GIF and BMP to uint8 arrays of fixed shape."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TypeVar

import numpy as np
from PIL import AvifImagePlugin, Image, UnidentifiedImageError

from perceiver_dist.modalities import ImageInput
from pipelines.augment.image_transform import NO_TRANSFORM, Box, ImageTransform
from pipelines.decode.image_metadata import ON_THEIR_SIDE, orientation, upright, without_metadata
from pipelines.errors import SampleError
from pipelines.limits import DEFAULT_LIMITS, Limits

Result = TypeVar("Result")

# Pillow warns about large images on standard error. `Limits.image_pixels` takes the place of its check.
Image.MAX_IMAGE_PIXELS = None
# A decoding task has one core.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP")
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Pillow modes of 16-bit grayscale images. "I" is wider, but older Pillow versions open 16-bit PNG files in it."""
_WIDE_MODES = {"I": "32-bit", "F": "floating-point"}
"""Pillow modes whose range of values no file states, so that black and white are unknown."""


def decode_image(
    data: bytes, spec: ImageInput, limits: Limits = DEFAULT_LIMITS, transform: ImageTransform = NO_TRANSFORM
) -> np.ndarray:
    """Decode one image, apply its EXIF orientation, and fit it to the requested size and channels.

    A part of the image is resized to the requested size with antialiasing: by default the largest centered part with
    the aspect ratio of that size. Transparent images are composited over white.

    Args:
        data: A whole JPEG, PNG, WebP, AVIF, TIFF, GIF or BMP file; of several pictures, the first is taken.
        spec: Size and channels of the result.
        limits: Bounds on its number of pixels.
        transform: Crop and augmentation.

    Returns:
        uint8 (height, width, channels).

    Raises:
        SampleError: The bytes are empty, truncated or not of these formats, or the header claims more pixels than the
            limit.
    """

    def decode(file: bytes) -> np.ndarray:
        with _opened(file, limits) as image:
            # Only JPEG supports this: it decodes at 1/2, 1/4 or 1/8 of its size, still at least twice what is needed.
            side = round(2 * max(spec.height, spec.width) / transform.min_crop_side)
            image.draft(None, (side, side))
            turned = upright(image, orientation(image))
            box = transform.crop_box(*turned.size, spec.width / spec.height)
            return fit_image(turned, spec.height, spec.width, spec.channels, box, transform)

    return _despite_metadata(decode, data)


def image_size(data: bytes, limits: Limits = DEFAULT_LIMITS) -> tuple[int, int]:
    """Return the width and height that an image's header states, after its EXIF orientation is applied.

    Args:
        data: A whole file, as for `decode_image`.
        limits: Bounds on its number of pixels.

    Raises:
        SampleError: As in `decode_image`, as far as the header shows.
    """

    def read_size(file: bytes) -> tuple[int, int]:
        with _opened(file, limits) as image:
            width, height = image.size
            return (height, width) if orientation(image) in ON_THEIR_SIDE else (width, height)

    return _despite_metadata(read_size, data)


def _despite_metadata(read: Callable[[bytes], Result], data: bytes) -> Result:
    """Read an image, and if that fails read it again without its metadata.

    Raises:
        SampleError: That fails as well.
    """
    try:
        return read(data)
    except SampleError:
        bare = without_metadata(data)
        if bare == data:
            raise
        return read(bare)


@contextmanager
def _opened(data: bytes, limits: Limits) -> Iterator[Image.Image]:
    """Open an image; every Pillow error, now or while the image is read, becomes a SampleError.

    Raises:
        SampleError: The bytes cannot be decoded, or the header claims more pixels than the limit.
    """
    if not data:
        raise SampleError("image is empty (0 bytes)")
    try:
        _check_size(*_webp_canvas(data), limits)
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size, limits)
            if image.mode in _WIDE_MODES and image.format != "PNG":
                raise SampleError(
                    f"image has {_WIDE_MODES[image.mode]} pixels, expected 8 or 16 bits a channel; convert it"
                )
            yield image
    except UnidentifiedImageError as error:
        raise SampleError(f"image is none of {', '.join(FORMATS)}, or its header is damaged") from error
    except SampleError:
        raise
    except Exception as error:
        # Pillow's parsers raise nearly anything on damaged files, struct.error and SyntaxError included.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SampleError(f"image cannot be decoded: {reason}") from error


def _check_size(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.image_pixels:
        raise SampleError(
            f"image has {width} x {height} pixels by its header, more than data.limits.image_pixels "
            f"{limits.image_pixels}"
        )


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """Return width and height of a WebP file with an extended header, else 0, 0.

    They have to be known before Pillow opens the file, because it allocates the canvas on opening.
    """
    if data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8X" or len(data) < 30:
        return 0, 0
    return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1


def fit_image(
    image: Image.Image, height: int, width: int, channels: int, box: Box, transform: ImageTransform
) -> np.ndarray:
    """Convert an image to grayscale or RGB, and resize a part of it to height x width.

    Args:
        image: An image of any Pillow mode.
        height: Rows of the result.
        width: Columns of the result.
        channels: 1 for grayscale, 3 for RGB.
        box: The part to take: left, top, right, bottom.
        transform: Augmentation of the resized image.

    Returns:
        uint8 (height, width, channels).
    """
    mode = "L" if channels == 1 else "RGB"
    plain = _without_alpha(image)
    coloured = plain if plain.mode == mode else plain.convert(mode)
    fitted = _resized(coloured, width, height, box)
    return np.array(transform.apply(fitted), dtype=np.uint8).reshape(height, width, channels)


def _resized(image: Image.Image, width: int, height: int, box: Box) -> Image.Image:
    """Resize a part of an image. A part that has the size already is cropped, which gives the same pixels faster."""
    left, top, right, bottom = (int(edge) for edge in box)
    if (left, top, right, bottom) == tuple(box) and (right - left, bottom - top) == (width, height):
        return image.crop((left, top, right, bottom))
    return image.resize((width, height), Image.Resampling.BICUBIC, box)


def _without_alpha(image: Image.Image) -> Image.Image:
    """Convert the modes that Pillow would convert wrongly: 16 bits per pixel, and transparency."""
    if image.mode in SIXTEEN_BIT_MODES:
        # Pillow's own conversion clips 16-bit values at 255. The high byte is the image in 8 bits.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image
