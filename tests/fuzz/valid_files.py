"""A small valid file of every format that a sample can contain."""

import json
import struct
from fractions import Fraction
from functools import cache
from io import BytesIO
from typing import Any

import av
import av.container
import numpy as np
from PIL import Image

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


def sound(extension: str, codec: str) -> bytes:
    """Return an audio file of a tone."""
    target = BytesIO()
    with av.open(target, "w", format=extension) as container:
        container.mux(add_tone(container, codec, RATE, seconds=2))
    return target.getvalue()


def webm() -> bytes:
    """Return a grey video in VP8, with a tone in Opus."""
    target = BytesIO()
    with av.open(target, "w", format="webm") as container:
        pictures = container.add_stream("libvpx", rate=16)
        pictures.width, pictures.height, pictures.pix_fmt = 32, 32, "yuv420p"
        frames = [
            av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * n, np.uint8), "rgb24") for n in range(18)
        ]
        for number, frame in enumerate(frames):
            frame.pts = number
        packets = [packet for frame in [*frames, None] for packet in pictures.encode(frame)]
        packets += add_tone(container, "libopus", 48_000, seconds=1)
        for packet in sorted(packets, key=decoding_time):
            container.mux(packet)
    return target.getvalue()


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


@cache
def valid_files() -> dict[str, bytes]:
    """Return a file of about 0.1 to 20 KB by field name."""
    return {
        "jpg": picture("JPEG"),
        "png": picture("PNG"),
        "webp": picture("WEBP"),
        "flac": sound("flac", "flac"),
        "mp3": sound("mp3", "libmp3lame"),
        "wav": sound("wav", "pcm_s16le"),
        "mp4": render_clip(0, np.random.default_rng(0)),
        "webm": webm(),
        "npy": cloud(),
        **{kind: mesh(kind) for kind in ("off", "ply", "obj")},
        "json": json.dumps({"label": 1, "caption": "a square above a circle", "size": [40, 56]}).encode(),
    }
