"""Image decoding with Pillow: JPEG, PNG and WebP to uint8 arrays of fixed shape."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from perceiver_dist.modalities import ImageInput
from pipelines.augment.image_transform import NO_TRANSFORM, Box, ImageTransform
from pipelines.errors import SampleError
from pipelines.limits import DEFAULT_LIMITS, Limits

# Pillow warns about large images on standard error. `Limits.image_pixels` takes the place of its check.
Image.MAX_IMAGE_PIXELS = None

FORMATS = ("JPEG", "PNG", "WEBP")
_ON_THEIR_SIDE = (5, 6, 7, 8)
"""Values of the EXIF orientation tag that swap width and height."""
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Pillow modes of 16-bit grayscale images. "I" is wider, but older Pillow versions open 16-bit PNG files in it."""


def decode_image(
    data: bytes, spec: ImageInput, limits: Limits = DEFAULT_LIMITS, transform: ImageTransform = NO_TRANSFORM
) -> np.ndarray:
    """Decode one image, apply its EXIF orientation, and fit it to the requested size and channels.

    A part of the image is resized to the requested size with antialiasing: by default the largest centered part with
    the aspect ratio of that size. Transparent images are composited over white.

    Args:
        data: A whole JPEG, PNG or WebP file.
        spec: Size and channels of the result.
        limits: Bounds on its number of pixels.
        transform: Crop and augmentation.

    Returns:
        uint8 (height, width, channels).

    Raises:
        SampleError: The bytes are empty, truncated or not of these formats, or the header claims more pixels than the
            limit.
    """
    with _opened(data, limits) as image:
        # Only JPEG supports this: it decodes at 1/2, 1/4 or 1/8 of its size, still at least twice what is needed.
        side = round(2 * max(spec.height, spec.width) / transform.min_crop_side)
        image.draft(None, (side, side))
        # Both this and `convert` below copy the picture even if there is nothing to do: 7% of the time of a photograph.
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        upright = ImageOps.exif_transpose(image) if turned else image
        box = transform.crop_box(*upright.size, spec.width / spec.height)
        return fit_image(upright, spec.height, spec.width, spec.channels, box, transform)


def image_size(data: bytes, limits: Limits = DEFAULT_LIMITS) -> tuple[int, int]:
    """Return the width and height that an image's header states, after its EXIF orientation is applied.

    Args:
        data: A whole JPEG, PNG or WebP file.
        limits: Bounds on its number of pixels.

    Raises:
        SampleError: As in `decode_image`, as far as the header shows.
    """
    with _opened(data, limits) as image:
        width, height = image.size
        on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) in _ON_THEIR_SIDE
        return (height, width) if on_its_side else (width, height)


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
            yield image
    except UnidentifiedImageError as error:
        raise SampleError("image is neither JPEG, PNG nor WebP, or its header is damaged") from error
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
