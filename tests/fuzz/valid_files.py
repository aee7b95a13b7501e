"""A small valid file of every format that a sample can contain, and of every way in which people come by such a file.

A kind is a field name, or one with a variant behind a hyphen: `streamed` files were written to a pipe, so that their
headers hold placeholders, `joined` ones are two files in one, and `headless` ones begin in the middle of a recording.
"""

import json
import struct
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from io import BytesIO
from typing import Any

import av
import av.container
import numpy as np
from PIL import Image
from pipe_file import Pipe

from pipelines.demo.synthetic_clips import render_clip

RATE = 8000


def picture(form: str) -> bytes:
    """Return a picture in a format of Pillow."""
    target = BytesIO()
    rows, columns = np.indices((40, 56))
    pixels = np.stack([rows * 6, columns * 4, (rows * columns) % 256], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(target, form)
    return target.getvalue()


def add_tone(
    container: av.container.OutputContainer, codec: str, rate: int, seconds: float
) -> list["av.Packet[av.AudioStream]"]:
    """Add an audio stream and return the packets of a tone for it."""
    stream = container.add_stream(codec, rate=rate, layout="mono")
    assert isinstance(stream, av.AudioStream)
    wave = (9000 * np.sin(np.arange(int(seconds * rate)) / 5)).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    pieces = av.AudioResampler(stream.format, "mono", rate, stream.frame_size or 0).resample(frame)
    return [packet for piece in [*pieces, None] for packet in stream.encode(piece)]


def decoding_time(packet: "av.Packet[Any]") -> Fraction:
    """Return the time, in seconds, at which a packet is decoded."""
    assert packet.dts is not None
    return packet.dts * packet.time_base


def written(streamed: bool, form: str, options: dict[str, str], write: Callable[[Any], None]) -> bytes:
    """Return what `write` writes into a container, on a disk or to a pipe."""
    pipe, disk = Pipe(), BytesIO()
    with av.open(pipe if streamed else disk, "w", format=form, options=options) as container:
        write(container)
    return bytes(pipe.content) if streamed else disk.getvalue()


def sound(form: str, codec: str, streamed: bool = False, rate: int = RATE, **options: str) -> bytes:
    """Return an audio file of a tone."""
    return written(
        streamed, form, options, lambda container: container.mux(add_tone(container, codec, rate, seconds=2))
    )


def pixels_of(number: int, noisy: bool) -> np.ndarray:
    """Return a grey frame, or one of noise, uint8 (32, 32, 3)."""
    if noisy:
        return np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
    return np.full((32, 32, 3), 10 * number, np.uint8)


def clip(
    form: str,
    codec: str,
    sound_codec: str = "",
    streamed: bool = False,
    rate: int = 16,
    noisy: bool = False,
) -> bytes:
    """Return a video of 18 frames, with a tone if there is a codec for it."""

    def write(container: av.container.OutputContainer) -> None:
        pictures = container.add_stream(codec, rate=rate)
        assert isinstance(pictures, av.VideoStream)
        pictures.width, pictures.height = 32, 32
        pictures.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        # So that a recording that begins in the middle has a frame to begin with.
        pictures.codec_context.gop_size = 6
        frames = [
            av.VideoFrame.from_ndarray(pixels_of(number, noisy), format="rgb24") for number in range(18)
        ]
        for number, frame in enumerate(frames):
            frame.pts = number
        packets = [packet for frame in [*frames, None] for packet in pictures.encode(frame)]
        if sound_codec:
            packets += add_tone(container, sound_codec, 48_000, seconds=1)
        for packet in sorted(packets, key=decoding_time):
            container.mux(packet)

    return written(streamed, form, {}, write)


def cloud() -> bytes:
    """Return an npy file of 100 points."""
    target = BytesIO()
    np.save(target, np.arange(300.0).reshape(100, 3))
    return target.getvalue()


def mesh(kind: str) -> bytes:
    """Return a mesh of a strip of triangles; the PLY file is binary."""
    corners = [(float(n // 2), float(n % 2), float(n % 3)) for n in range(12)]
    faces = [(n, n + 1, n + 2) for n in range(10)]
    if kind == "obj":
        lines = [f"v {x} {y} {z}" for x, y, z in corners]
        return "\n".join([*lines, *(f"f {a + 1} {b + 1} {c + 1}" for a, b, c in faces), ""]).encode()
    if kind == "off":
        lines = ["OFF", f"{len(corners)} {len(faces)} 0", *(f"{x} {y} {z}" for x, y, z in corners)]
        return "\n".join([*lines, *(f"3 {a} {b} {c}" for a, b, c in faces), ""]).encode()
    header = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {len(corners)}\nproperty float x\nproperty float y\n"
        f"property float z\nelement face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    content = [struct.pack("<3f", *corner) for corner in corners]
    return header.encode() + b"".join([*content, *(struct.pack("<B3i", 3, *face) for face in faces)])


def field_of_kind(kind: str) -> str:
    """Return the field name of a kind, without its variant."""
    return kind.partition("-")[0]


def pictures() -> dict[str, bytes]:
    """Return pictures by kind."""
    forms = {
        "jpg": "JPEG",
        "png": "PNG",
        "webp": "WEBP",
        "avif": "AVIF",
        "tif": "TIFF",
        "gif": "GIF",
        "bmp": "BMP",
    }
    files = {kind: picture(form) for kind, form in forms.items()}
    return files | {"jpg-joined": 2 * files["jpg"], "gif-joined": 2 * files["gif"]}


def sounds() -> dict[str, bytes]:
    """Return sound files by kind."""
    forms = {"flac": "flac", "wav": "wav", "mp3": "mp3", "ogg": "ogg", "aac": "adts"}
    codecs = {"flac": "flac", "wav": "pcm_s16le", "mp3": "libmp3lame", "ogg": "libopus", "aac": "aac"}
    # Opus knows a few rates only, and ADTS has no other than those of AAC.
    rates = {"ogg": 48_000, "aac": 16_000}
    files = {kind: sound(form, codecs[kind], rate=rates.get(kind, RATE)) for kind, form in forms.items()}
    streamed = {
        f"{kind}-streamed": sound(form, codecs[kind], True, rates.get(kind, RATE))
        for kind, form in forms.items()
    }
    bare_mp3 = sound("mp3", "libmp3lame", write_xing="0", id3v2_version="0")
    return {
        **files,
        **streamed,
        "m4a": sound("ipod", "aac", rate=16_000),
        **{f"{kind}-joined": 2 * files[kind] for kind in ("wav", "mp3", "ogg", "aac")},
        "mp3-headless": bare_mp3[len(bare_mp3) // 5 :],
        "aac-headless": files["aac"][len(files["aac"]) // 5 :],
    }


def clips() -> dict[str, bytes]:
    """Return clips by kind."""
    # Of noise, since grey frames fit into one pack, of which nothing is left without its beginning.
    transport = clip("mpegts", "mpeg2video", rate=25, noisy=True)
    program = clip("mpeg", "mpeg2video", rate=25, noisy=True)
    return {
        "mp4": render_clip(0, np.random.default_rng(0)),
        "webm": clip("webm", "libvpx", "libopus"),
        "m4v": clip("ipod", "libx264", "aac"),
        "mov": clip("mov", "mjpeg"),
        "3gp": clip("3gp", "mpeg4", "aac"),
        "avi": clip("avi", "mpeg4"),
        "ts": transport,
        "mpg": program,
        "webm-streamed": clip("webm", "libvpx", "libopus", streamed=True),
        "mkv-streamed": clip("matroska", "mpeg4", streamed=True),
        "avi-streamed": clip("avi", "mjpeg", streamed=True),
        "ts-streamed": clip("mpegts", "libx264", streamed=True),
        "mpg-streamed": clip("mpeg", "mpeg1video", streamed=True, rate=25),
        "ts-joined": 2 * transport,
        "mpg-joined": 2 * program,
        "ts-headless": transport[len(transport) // 5 :],
        "mpg-headless": program[len(program) // 5 :],
    }


@cache
def valid_files() -> dict[str, bytes]:
    """Return a file of about 0.1 to 60 KB by kind."""
    return {
        **pictures(),
        **sounds(),
        **clips(),
        "npy": cloud(),
        **{kind: mesh(kind) for kind in ("off", "ply", "obj")},
        "json": json.dumps({"label": 1, "caption": "a square above a circle", "size": [40, 56]}).encode(),
    }
