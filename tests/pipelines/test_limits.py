"""Files that claim absurd sizes are rejected by their sizes and headers, before memory is allocated."""

import pickle
import struct
import tracemalloc
import warnings
import wave
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tar_files import index_of, write_tar

from perceiver_dist.errors import UserError
from perceiver_dist.modalities import AudioInput, ImageInput, VideoInput
from pipelines.decode import decode_audio, decode_image, decode_video
from pipelines.demo.synthetic_clips import render_clip
from pipelines.errors import SampleError
from pipelines.limits import Limits
from pipelines.shards.source import DataConfig, SourceConfig
from pipelines.units.plan import EvaluationPlan
from pipelines.units.unit_maker import Unit, UnitMaker

IMAGE = ImageInput(height=4, width=4)
AUDIO = AudioInput(sample_rate=8000, samples=800, segment=100)
VIDEO = VideoInput(frames=2, height=8, width=8)


def png(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size that its single row does not have."""
    target = BytesIO()
    Image.new("L", (1, 1)).save(target, "PNG")
    data = bytearray(target.getvalue())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def webp(width: int, height: int) -> bytes:
    """Return the header of a WebP file of this size, without a picture."""
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4)
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def wav(rate: int = 8000, channels: int = 1, frames: int = 800) -> bytes:
    """Return a WAV file of silence."""
    target = BytesIO()
    with wave.open(target, "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(bytes(2 * channels * frames))
    return target.getvalue()


def rejection(decode: Callable[..., object], *arguments: object) -> str:
    """Return the message of a decoder's SampleError; it must allocate less than 10 MB in Python and emit no warning."""
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SampleError) as caught:
            decode(*arguments)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 2**20
    return str(caught.value)


@pytest.mark.parametrize("encode", [png, webp])
@pytest.mark.parametrize("size", [(16000, 12000), (16_000_000, 200), (2**24, 2**24 - 1)])
def test_image_of_absurd_size_is_rejected(encode: Callable[[int, int], bytes], size: tuple[int, int]) -> None:
    assert rejection(decode_image, encode(*size), IMAGE) == (
        f"image has {size[0]} x {size[1]} pixels by its header, more than data.limits.image_pixels 100000000"
    )


def test_large_image_within_the_limit_causes_no_warning() -> None:
    size = (10_000, 9_500)  # Above Pillow's own limit, at which it warns of a decompression bomb.
    assert rejection(decode_image, png(*size), IMAGE).startswith(
        "image cannot be decoded: image file is truncated"
    )


@pytest.mark.parametrize(
    ("data", "claim"),
    [
        (wav(rate=1), "1 samples a second and 1 channels"),
        (wav(rate=2_000_000_000), "2000000000 samples a second and 1 channels"),
        (wav(channels=100), "8000 samples a second and 100 channels"),
    ],
)
def test_audio_of_absurd_rate_or_channels_is_rejected(data: bytes, claim: str) -> None:
    assert rejection(decode_audio, data, AUDIO, 0.5) == (
        f"audio track 0 has {claim} by its header, expected 1000 to 768000 and 1 to 64"
    )


def test_audio_longer_than_the_limit_is_rejected() -> None:
    assert rejection(decode_audio, wav(frames=17_000), AUDIO, 0.5, Limits(media_seconds=2)) == (
        "audio track 0 lasts 2 s by its header, more than data.limits.media_seconds 2"
    )


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(media_seconds=1), r"video track 0 lasts 1 s by its header, more than .*media_seconds 1"),
        (Limits(video_frames=5), r"video track 0 has \d+ frames by its header, more than .*video_frames 5"),
        (
            Limits(image_pixels=100),
            r"video track 0 has 32 x 32 pixels by its header, more than .*image_pixels 100",
        ),
    ],
)
def test_video_beyond_a_limit_is_rejected(limits: Limits, reason: str) -> None:
    clip = render_clip(0, np.random.default_rng(0))
    with pytest.raises(SampleError, match=reason):
        decode_video(clip, VIDEO, AUDIO, 0.5, limits)


def unit(folder: Path, members: list[tuple[str, bytes]], **limits: Any) -> Unit:
    """Return the evaluation unit of two samples, read with these limits."""
    maker = UnitMaker(
        source=SourceConfig("x", "x.tar", ["image"], num_classes=2),
        inputs={"image": IMAGE},
        index=index_of(write_tar(folder / "x.tar", members)),
        plan=EvaluationPlan(2, 2, lanes=1),
        data=DataConfig(limits=Limits(**limits)),
    )
    return maker.make(0)


def test_field_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    members = [("a.cls", b"1"), ("b.cls", b"1"), ("b.png", bytes(1001)), ("a.mp4", bytes(1001))]
    found = unit(tmp_path, members, field_bytes=1000)
    assert found["valid"].tolist() == [True, False]
    [(_, key, reason)] = found["quarantined"]
    assert (key, reason) == ("b", "field 'png' has 1001 bytes, more than data.limits.field_bytes 1000")


def test_sample_with_a_problem_in_the_index_is_quarantined_with_it(tmp_path: Path) -> None:
    found = unit(tmp_path, [("../a.cls", b"1"), ("b.cls", b"1")])
    assert found["valid"].tolist() == [False, True]
    [(_, key, reason)] = found["quarantined"]
    assert (key, reason) == ("../a", "its key is an absolute path or leads out of its folder")


class Trap:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    array = BytesIO()
    np.save(array, np.array([Trap(tmp_path / "sprung")], object), allow_pickle=True)
    members = [(f"a.{field}", trap) for field in ("pkl", "pickle", "pth", "pt", "cls", "png")]
    found = unit(tmp_path, [*members, ("a.npy", array.getvalue()), ("b.cls", b"1")])
    assert found["valid"].tolist() == [False, True]
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)  # noqa: S301 # our own
    assert (tmp_path / "sprung").exists()  # The trap works: unpickling springs it.


@pytest.mark.parametrize(
    "name", ["field_bytes", "image_pixels", "media_seconds", "video_frames", "decode_seconds"]
)
def test_limit_of_zero_is_rejected(name: str) -> None:
    with pytest.raises(UserError, match=rf"data\.limits\.{name} is 0, must be above 0"):
        Limits(**{name: 0})
