"""Tests of image decoding, on images encoded here."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from perceiver_dist.modalities import ImageInput
from pipelines.decode import decode_image
from pipelines.errors import SampleError
from pipelines.fields import FIELD_MODALITY

RGB = ImageInput(height=16, width=16, channels=3)
GRAY = ImageInput(height=16, width=16, channels=1)


def encode(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    target = BytesIO()
    image.save(target, form, **options)
    return target.getvalue()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_an_image_of_the_requested_size_is_decoded_exactly() -> None:
    pixels = noise(16, 16)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(pixels)), RGB), pixels)


@pytest.mark.parametrize(
    ("mode", "form", "expected"),
    [
        ("RGB", "JPEG", (200, 100, 50)),
        ("CMYK", "JPEG", (200, 100, 50)),
        ("RGB", "WEBP", (200, 100, 50)),
        ("P", "PNG", (200, 100, 50)),
        ("RGBA", "PNG", (200, 100, 50)),
        ("L", "PNG", (124, 124, 124)),
        ("LA", "PNG", (124, 124, 124)),
    ],
)
def test_every_mode_is_converted_to_rgb_and_grayscale(
    mode: str, form: str, expected: tuple[int, int, int]
) -> None:
    image = Image.new("RGB", (40, 30), (200, 100, 50)).convert(mode)
    colour = decode_image(encode(image, form), RGB)
    gray = decode_image(encode(image, form), GRAY)
    assert colour.shape == RGB.array_shape
    assert gray.shape == GRAY.array_shape
    np.testing.assert_allclose(colour.mean(axis=(0, 1)), expected, atol=4)
    np.testing.assert_allclose(gray.mean(), 124, atol=4)


def test_16_bit_images_keep_their_brightness() -> None:
    image = Image.fromarray(np.full((20, 20), 0x8040, dtype=np.uint16))
    assert (decode_image(encode(image), RGB) == 0x80).all()


def test_transparent_images_are_composited_over_white() -> None:
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    assert (decode_image(encode(image), RGB) == 255).all()


def test_the_exif_orientation_is_applied() -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :16] = 255  # White on the left: at the top after the rotation.
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: rotate by 90 degrees clockwise.
    decoded = decode_image(encode(Image.fromarray(pixels), "JPEG", exif=exif), RGB)
    assert decoded[:7].min() > 240
    assert decoded[9:].max() < 15


@pytest.mark.parametrize("size", [(48, 16), (16, 48)])
def test_the_crop_is_centered(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "red")
    image.paste(
        (0, 255, 0), ((size[0] - 16) // 2, (size[1] - 16) // 2, (size[0] + 16) // 2, (size[1] + 16) // 2)
    )
    assert (decode_image(encode(image), RGB) == (0, 255, 0)).all()


def test_downscaling_is_antialiased() -> None:
    fine = np.indices((256, 256)).sum(axis=0) % 2 * 255
    decoded = decode_image(encode(Image.fromarray(fine.astype(np.uint8))), GRAY)
    np.testing.assert_allclose(decoded, 127, atol=4)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.9])
def test_truncated_images_are_rejected(form: str, kept: float) -> None:
    data = encode(Image.fromarray(noise(64, 64)), form)
    with pytest.raises(SampleError, match="image"):
        decode_image(data[: int(kept * len(data))], RGB)


@pytest.mark.parametrize("data", [b"", b"no picture", encode(Image.new("RGB", (4, 4)), "PPM")])
def test_other_bytes_are_rejected(data: bytes) -> None:
    with pytest.raises(SampleError, match=r"is empty|is none of JPEG, PNG, WEBP, AVIF, TIFF, GIF, BMP"):
        decode_image(data, RGB)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "GIF"])
def test_lossless_formats_are_decoded_exactly(form: str) -> None:
    pixels = np.tile(noise(16, 8), (1, 2, 1))  # 128 colours: GIF has 256
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(pixels), form), RGB), pixels)


def test_of_several_pictures_the_first_is_taken() -> None:
    black, white = (Image.new("RGB", (16, 16), colour) for colour in ("black", "white"))
    for form in ("GIF", "TIFF"):
        assert decode_image(encode(black, form, save_all=True, append_images=[white]), RGB).max() == 0


@pytest.mark.parametrize(
    ("pixels", "error"),
    [
        (
            np.full((8, 8), np.nan, np.float32),
            "image has floating-point pixels, expected 8 or 16 bits a channel",
        ),
        (np.full((8, 8), 70_000, np.int32), "image has 32-bit pixels, expected 8 or 16 bits a channel"),
    ],
)
def test_pixels_of_unknown_range_are_rejected(pixels: np.ndarray, error: str) -> None:
    with pytest.raises(SampleError, match=error):
        decode_image(encode(Image.fromarray(pixels), "TIFF"), RGB)


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


LARGE_TEXT = zlib.compress(bytes(3 << 20))


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"zTXt", b"comment\0\0" + LARGE_TEXT),
        chunk(b"iTXt", b"comment\0\1\0\0\0" + LARGE_TEXT),
        chunk(b"iCCP", b"profile\0\0" + LARGE_TEXT),
        chunk(b"iCCP", b"profile\0\0no profile"),
        chunk(b"tEXt", b"comment\0" + bytes(70 << 20)),
        chunk(b"eXIf", b"no exif data"),
    ],
    ids=lambda metadata: metadata[4:8].decode(),
)
@pytest.mark.parametrize("place", [33, -12])  # after the header, and before the end
def test_metadata_of_a_png_file_does_not_cost_its_pixels(metadata: bytes, place: int) -> None:
    pixels = noise(16, 16)
    data = encode(Image.fromarray(pixels))
    np.testing.assert_array_equal(decode_image(data[:place] + metadata + data[place:], RGB), pixels)


@pytest.mark.parametrize(
    ("marker", "content"),
    [
        (0xE0, b"JFIF"),
        (0xE1, b"Exif\0\0no exif data"),
        (0xE2, b"MPF\0nothing"),
        (0xE2, b"ICC_PROFILE\0\x09"),
        (0xED, b"Photoshop 3.0\x008BIM" + b"\xff" * 20),
        (0xFE, bytes(60_000)),
    ],
)
@pytest.mark.filterwarnings("ignore:Image appears to be a malformed MPO")
def test_metadata_of_a_jpeg_file_does_not_cost_its_pixels(marker: int, content: bytes) -> None:
    data = encode(Image.fromarray(noise(16, 16)), "JPEG")
    segment = bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
    np.testing.assert_array_equal(decode_image(data[:2] + segment + data[2:], RGB), decode_image(data, RGB))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_turned_whatever_else_its_exif_data_hold(form: str) -> None:
    # Orientation 6, and a resolution (0x011A) that is text where Pillow expects a fraction.
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHI4s", 0x011A, 2, 4, b"odd")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :16] = 255
    decoded = decode_image(encode(Image.fromarray(pixels), form, exif=exif), RGB)
    assert decoded[:7].min() > 240
    assert decoded[9:].max() < 15


@pytest.mark.parametrize("value", [0, 9, 65_535])
def test_an_orientation_that_does_not_exist_means_upright(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    pixels = noise(16, 16)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(pixels), exif=exif), RGB), pixels)


def test_a_decompression_bomb_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(SampleError, match="decompression bomb"):
        decode_image(encode(Image.new("L", (40, 40))), RGB)


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([1, 3]))
@settings(max_examples=40, deadline=None)
def test_the_shape_is_the_requested_one_for_every_input_size(height: int, width: int, channels: int) -> None:
    spec = ImageInput(height=12, width=20, channels=channels)
    decoded = decode_image(encode(Image.fromarray(noise(height, width))), spec)
    assert decoded.shape == spec.array_shape
    assert decoded.dtype == spec.array_dtype


def test_field_names_are_file_extensions() -> None:
    assert FIELD_MODALITY["jpeg"] == "image"
    assert FIELD_MODALITY["opus"] == "audio"
    assert FIELD_MODALITY["webm"] == "video"
