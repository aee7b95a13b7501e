"""Kinds of damage to files: each a function of the content, its format and a random number generator."""

import random
import re
import zlib
from collections.abc import Callable

from valid_files import field_of_kind, valid_files

EXTREME_VALUES = [b"\xff" * 8, b"\x7f" + b"\xff" * 7, bytes(8), b"\x80" + bytes(7), b"\xff\xff\xff\x7f" * 2]
MP4_BOXES = rb"m[vd]hd|tkhd|st[tscdz]{2}|stco|mdat|avc1|mp4a|mp4v|trun|mehd|elst"
EBML_ELEMENTS = rb"\x1a\x45\xdf\xa3|\x18\x53\x80\x67|\x16\x54\xae\x6b|\x15\x49\xa9\x66|\x1f\x43\xb6\x75"
SIZES = {
    "jpg": rb"\xff[\xc0\xc4\xda\xdb]",
    "png": rb"IHDR|IDAT",
    "webp": rb"RIFF|VP8[ XL]",
    "avif": rb"ispe|iloc|iinf|meta|mdat",
    "tif": rb"II\*\x00|[\x00-\x1f]\x01[\x03\x04]\x00",
    "gif": rb"GIF8[79]a|,|!\xf9",
    "bmp": rb"BM",
    "flac": rb"fLaC",
    "mp3": rb"\xff[\xfb\xf3\xe3]|Xing|Info",
    "wav": rb"RIFF|fmt |data",
    "ogg": rb"OggS|OpusHead",
    "aac": rb"\xff[\xf0\xf1\xf8\xf9]",
    **dict.fromkeys(("mp4", "m4a", "m4v", "mov", "3gp"), MP4_BOXES),
    **dict.fromkeys(("webm", "mkv"), EBML_ELEMENTS),
    "avi": rb"RIFF|LIST|avih|strh|strf|movi|idx1",
    "ts": rb"\x47|\x00\x00\x01",
    "mpg": rb"\x00\x00\x01[\xb3\xba\xbb\xc0\xe0]",
    "npy": rb"NUMPY|shape",
    "off": rb"OFF|\n",
    "ply": rb"vertex|face|end_header",
    "obj": rb"\n[vf]",
    "json": rb"\d+",
    "tar": rb"ustar",
}
"""Patterns by format that precede sizes, rates, counts and lengths."""

Damage = Callable[[bytes, str, random.Random], bytes]


def bits_flipped(data: bytes, kind: str, generator: random.Random) -> bytes:  # noqa: ARG001 # one signature for all
    """Flip 1 to 32 random bits."""
    damaged = bytearray(data)
    for _ in range(generator.randint(1, 32)):
        damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    return bytes(damaged)


def header_bits_flipped(data: bytes, kind: str, generator: random.Random) -> bytes:
    """Flip bits of the first 128 bytes."""
    return bits_flipped(data[:128], kind, generator) + data[128:]


def cut(data: bytes, kind: str, generator: random.Random) -> bytes:  # noqa: ARG001
    """Truncate the file."""
    return data[: generator.randrange(1, len(data))]


def block_overwritten(data: bytes, kind: str, generator: random.Random) -> bytes:  # noqa: ARG001
    """Overwrite up to a quarter of the file with random bytes."""
    start = generator.randrange(len(data))
    length = generator.randint(1, max(1, len(data) // 4))
    return (data[:start] + generator.randbytes(length) + data[start + length :])[: len(data)]


def header_swapped(data: bytes, kind: str, generator: random.Random) -> bytes:
    """Replace the beginning by that of a file of another format."""
    other = generator.choice([content for name, content in valid_files().items() if name != kind])
    length = generator.choice((4, 8, 16, 32, 64, 200))
    return other[:length] + data[length:]


def absurd_sizes(data: bytes, kind: str, generator: random.Random) -> bytes:
    """Overwrite bytes behind the marks of sizes with extreme values."""
    damaged = bytearray(data)
    pattern = SIZES[field_of_kind(kind)]
    marks = [match.end() for match in re.finditer(pattern, data, re.DOTALL)]
    for _ in range(generator.randint(1, 3)):
        width = generator.choice((1, 2, 4, 8))
        start = min(generator.choice(marks or [0]) + generator.randrange(40), max(0, len(data) - width))
        damaged[start : start + width] = generator.choice(EXTREME_VALUES)[:width]
    if kind == "png":  # Correct the checksum, or the decoder would stop at it and never see the damage.
        damaged[29:33] = zlib.crc32(damaged[12:29]).to_bytes(4, "big")
    return bytes(damaged)


def emptied(data: bytes, kind: str, generator: random.Random) -> bytes:  # noqa: ARG001
    """Keep the beginning only, and drop the rest or replace it by zeros."""
    kept = generator.choice((0, 1, 16, len(data) // 2))
    return data[:kept] + bytes(generator.choice((0, len(data) - kept)))


DAMAGES: dict[str, Damage] = {
    function.__name__: function
    for function in (
        bits_flipped,
        header_bits_flipped,
        cut,
        block_overwritten,
        header_swapped,
        absurd_sizes,
        emptied,
    )
}


def damaged_file(data: bytes, kind: str, damage: str, number: int) -> bytes:
    """Return the damaged file of this number, the same in every run."""
    return DAMAGES[damage](data, kind, random.Random(f"{kind} {damage} {number}"))  # noqa: S311 # repeatable
