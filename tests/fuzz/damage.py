"""Ways in which files are damaged: each a function of the content, what it is, and a random state."""

import random
import re
import zlib
from collections.abc import Callable

from valid_files import valid_files

ABSURD = [b"\xff" * 8, b"\x7f" + b"\xff" * 7, bytes(8), b"\x80" + bytes(7), b"\xff\xff\xff\x7f" * 2]
SIZES = {
    "jpg": rb"\xff[\xc0\xc4\xda\xdb]",
    "png": rb"IHDR|IDAT",
    "webp": rb"RIFF|VP8[ XL]",
    "flac": rb"fLaC",
    "mp3": rb"\xff[\xfb\xf3\xe3]|Xing|Info",
    "wav": rb"RIFF|fmt |data",
    "mp4": rb"m[vd]hd|tkhd|st[tscdz]{2}|stco|mdat|avc1|mp4a|trun",
    "webm": rb"\x1a\x45\xdf\xa3|\x18\x53\x80\x67|\x16\x54\xae\x6b|\x15\x49\xa9\x66|\x1f\x43\xb6\x75",
    "npy": rb"NUMPY|shape",
    "off": rb"OFF|\n",
    "ply": rb"vertex|face|end_header",
    "obj": rb"\n[vf]",
    "json": rb"\d+",
    "tar": rb"ustar",
}
"""Where sizes, rates, counts and lengths stand: right after these marks."""

Damage = Callable[[bytes, str, random.Random], bytes]


def bits_flipped(data: bytes, kind: str, chance: random.Random) -> bytes:  # noqa: ARG001 # all have the same arguments
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 32)):
        damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def header_bits_flipped(data: bytes, kind: str, chance: random.Random) -> bytes:
    return bits_flipped(data[:128], kind, chance) + data[128:]


def cut(data: bytes, kind: str, chance: random.Random) -> bytes:  # noqa: ARG001
    return data[: chance.randrange(1, len(data))]


def block_overwritten(data: bytes, kind: str, chance: random.Random) -> bytes:  # noqa: ARG001
    start = chance.randrange(len(data))
    length = chance.randint(1, max(1, len(data) // 4))
    return (data[:start] + chance.randbytes(length) + data[start + length :])[: len(data)]


def header_swapped(data: bytes, kind: str, chance: random.Random) -> bytes:
    other = chance.choice([content for name, content in valid_files().items() if name != kind])
    length = chance.choice((4, 8, 16, 32, 64, 200))
    return other[:length] + data[length:]


def absurd_sizes(data: bytes, kind: str, chance: random.Random) -> bytes:
    damaged = bytearray(data)
    marks = [match.end() for match in re.finditer(SIZES[kind], data, re.DOTALL)]
    for _ in range(chance.randint(1, 3)):
        width = chance.choice((1, 2, 4, 8))
        start = min(chance.choice(marks or [0]) + chance.randrange(40), max(0, len(data) - width))
        damaged[start : start + width] = chance.choice(ABSURD)[:width]
    if kind == "png":  # Or else its checksum would give the damage away.
        damaged[29:33] = zlib.crc32(damaged[12:29]).to_bytes(4, "big")
    return bytes(damaged)


def emptied(data: bytes, kind: str, chance: random.Random) -> bytes:  # noqa: ARG001
    kept = chance.choice((0, 1, 16, len(data) // 2))
    return data[:kept] + bytes(chance.choice((0, len(data) - kept)))


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
    """The file of this number, the same in every run."""
    return DAMAGES[damage](data, kind, random.Random(f"{kind} {damage} {number}"))  # noqa: S311 # repeatable
