"""Metadata of image files: the orientation, and a copy of the file without the rest.

Colour profiles, comments and EXIF data are not needed to decode an image, but Pillow gives up on a file if it cannot
read them, or if a text is longer than it allows. Then the image is decoded from a copy without them.
"""

import struct

from PIL import ExifTags, Image

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA = {b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs", b"sPLT", b"hIST"}
"""Chunks that do not change the decoded pixels (PNG specification, section 11.3), but for eXIf with the orientation."""

_JPEG_START, _JPEG_SCAN = b"\xff\xd8", 0xDA
_JPEG_METADATA = {0xE0, *range(0xE2, 0xEE), 0xEF, 0xFE}
"""Markers of segments for applications, and of comments. Not among them are APP1, with the orientation, and APP14
(Adobe), which says how colours are coded."""

_PARSING_ERRORS = (
    *(ArithmeticError, AttributeError, LookupError, OSError, SyntaxError, TypeError, ValueError),
    struct.error,
)
"""What Pillow's parsers of EXIF and XMP data raise where these are damaged. The pixels are good all the same."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that turns an image upright, by its EXIF orientation."""
ON_THEIR_SIDE = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image: 1 to 8, and 1 (upright) if it is missing or unreadable.

    Args:
        image: The image.

    Raises:
        Exception: The pixels of a PNG file, which may come before its EXIF data, are damaged.
    """
    if image.format == "PNG":
        image.load()  # Pillow would do it below, where an error must not be lost
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except _PARSING_ERRORS:
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def upright(image: Image.Image, turn: int) -> Image.Image:
    """Return an image turned upright.

    Unlike `ImageOps.exif_transpose`, this does not write the other EXIF data again, which fails on unusual types.

    Args:
        image: The image.
        turn: Its orientation.
    """
    return image.transpose(_TURNS[turn]) if turn in _TURNS else image


def without_metadata(data: bytes) -> bytes:
    """Return a PNG or JPEG file without its metadata, except for the orientation; other files as they are.

    Args:
        data: The whole file; if its structure is damaged, the rest from there on is kept.
    """
    if data.startswith(_PNG_SIGNATURE):
        return _without_png_metadata(data)
    if data.startswith(_JPEG_START):
        return _without_jpeg_metadata(data)
    return data


def _without_png_metadata(data: bytes) -> bytes:
    kept, position = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while position + 12 <= len(data):  # a chunk has its length, its type, the content and a checksum
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] not in _PNG_METADATA:
            kept.append(data[position:end])
        position = end
    return b"".join([*kept, data[position:]])


def _without_jpeg_metadata(data: bytes) -> bytes:
    kept, position = [_JPEG_START], len(_JPEG_START)
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != _JPEG_SCAN:
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if data[position + 1] not in _JPEG_METADATA:
            kept.append(data[position:end])
        position = end
    return b"".join([*kept, data[position:]])
