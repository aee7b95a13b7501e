"""Small shards of real media, with good samples and one bad sample per kind of fault."""

import wave
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from mesh_files import SQUARE, off
from PIL import Image
from tar_files import write_tar

from pipelines.demo.synthetic_clips import render_clip

Fields = dict[str, bytes]


def picture(width: int = 12, height: int = 8, form: str = "PNG") -> bytes:
    """Return a picture of a gradient."""
    target = BytesIO()
    Image.linear_gradient("L").resize((width, height)).save(target, form)
    return target.getvalue()


@cache
def sound(seconds: float = 3.0) -> bytes:
    """Return a WAV file of a tone, sampled at 8 kHz."""
    target = BytesIO()
    with wave.open(target, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes((9000 * np.sin(np.arange(int(8000 * seconds)) / 3)).astype("<i2").tobytes())
    return target.getvalue()


@cache
def clip() -> bytes:
    """Return a video of the demo data: 32 x 32 pixels, 1.125 s, with an audio track."""
    return render_clip(0, np.random.default_rng(0))


GOOD: list[Fields] = [
    {"png": picture(), "cls": b"0"},
    {"jpg": picture(40, 20, "JPEG"), "wav": sound(), "cls": b"1"},
    {"mp4": clip(), "cls": b"2"},
    {"off": off(*SQUARE), "cls": b"2"},
]
FAULTS: list[tuple[Fields, str]] = [
    ({"png": picture()[:60], "cls": b"0"}, "image cannot be decoded: "),
    # Only the last fifth is missing, which the centred window of an evaluation does not read.
    ({"wav": sound(10.0)[:130_000], "cls": b"0"}, "audio track 0 is truncated or damaged at byte "),
    ({"png": picture(), "cls": b"3"}, "label 3 is out of range 0 .. 2; "),
    ({"png": picture(), "cls": b"cat"}, "label field 'cls' holds 'cat', expected whole numbers"),
    ({"png": picture()}, "has no label field 'cls'"),
    ({"txt": b"a caption", "cls": b"0"}, "has no image, audio, video or points field"),
]
EVERYTHING: list[Fields] = [*GOOD, *(fields for fields, _ in FAULTS)]


def write_samples(path: Path, samples: list[Fields]) -> str:
    """Write a shard whose keys are the samples' numbers, and return its path."""
    members = [
        (f"{number}.{field}", content)
        for number, fields in enumerate(samples)
        for field, content in fields.items()
    ]
    return write_tar(path, members)
