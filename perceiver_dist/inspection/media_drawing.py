"""Decoded media as addresses and marks that a page holds in itself: nothing in them comes from a shard as it is."""

import base64
import wave
from io import BytesIO

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

_LARGEST_EXACT_SIDE = 96
"""Pixels up to which a picture is kept as it is (PNG); larger ones are photographs (JPEG)."""
_JPEG_QUALITY = 85
_WAVE_COLUMNS = 300
"""Columns that a sound is drawn with."""
_WINDOW = 512
_DECIBELS = 75
"""Range of a spectrogram below its loudest value."""
_DOT_AREA = 6000.0
"""Square points of ink that a cloud is drawn with, as far as its dots stay of a sensible size."""
_CLOUD_INCHES, _DOTS_PER_INCH = (4.4, 2.2), 110


def picture_address(pixels: np.ndarray) -> str:
    """Return a picture as a data: address.

    Args:
        pixels: uint8 (height, width, 3).
    """
    target = BytesIO()
    if max(pixels.shape[:2]) <= _LARGEST_EXACT_SIDE:
        Image.fromarray(pixels).save(target, "PNG", optimize=True)
        return _address("image/png", target)
    Image.fromarray(pixels).save(target, "JPEG", quality=_JPEG_QUALITY)
    return _address("image/jpeg", target)


def sound_address(sound: np.ndarray, rate: int) -> str:
    """Return a sound as a data: address of a WAV file.

    Args:
        sound: int16 (samples,).
        rate: Samples per second.
    """
    target = BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(sound.astype("<i2").tobytes())
    return _address("audio/wav", target)


def waveform(sound: np.ndarray) -> str:
    """Draw a sound's envelope: the path of an SVG of width 300 and height 2, loudest possible from -1 to 1.

    Args:
        sound: int16 (samples,), at least one.
    """
    columns = np.array_split(sound / 32768, min(_WAVE_COLUMNS, len(sound)))
    step = _WAVE_COLUMNS / len(columns)
    # A line of silence would have no height.
    upper = [f"{i * step:.1f} {-max(column.max(), 0.01):.3f}" for i, column in enumerate(columns)]
    lower = [f"{i * step:.1f} {-min(column.min(), -0.01):.3f}" for i, column in enumerate(columns)]
    return f"M{'L'.join([*upper, *lower[::-1]])}Z"


def spectrogram_address(sound: np.ndarray) -> str:
    """Draw a sound's loudness by time and frequency, from 0 at the bottom to half the rate, as a data: address.

    Args:
        sound: int16 (samples,), at least one.
    """
    # Mirrored at its ends, where a jump to silence would light up every frequency.
    padded = np.pad(sound / 32768, _WINDOW // 2, mode="reflect" if len(sound) > _WINDOW else "constant")
    hop = max(1, -(-len(sound) // _WAVE_COLUMNS))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::hop]
    power = np.abs(np.fft.rfft(windows * np.hanning(_WINDOW), axis=1)) ** 2
    decibels = 10 * np.log10(power + 1e-9)
    shades = np.clip(1 + (decibels - decibels.max()) / _DECIBELS, 0, 1).T[::-1]
    colours = matplotlib.colormaps["magma"](shades, bytes=True)[..., :3]
    target = BytesIO()
    Image.fromarray(np.ascontiguousarray(colours)).save(target, "JPEG", quality=_JPEG_QUALITY)
    return _address("image/jpeg", target)


def cloud_address(points: np.ndarray) -> str:
    """Draw a cloud from two sides, once with z up and once with y up, as a data: address; nearer points are brighter.

    Files do not say which way is up, so one of the two stands upright.

    Args:
        points: fp32 (points, 3), about from -1 to 1.
    """
    figure = Figure(figsize=_CLOUD_INCHES, dpi=_DOTS_PER_INCH)
    # Few points are drawn large enough to be seen.
    size = np.clip(_DOT_AREA / len(np.unique(points, axis=0)), 2.2, 16)
    for axes, axes_order in zip(figure.subplots(1, 2), ((0, 1, 2), (2, 0, 1)), strict=True):
        across, up, depth = _seen_from_above(points[:, axes_order])
        order = np.argsort(depth)
        axes.scatter(across[order], up[order], c=depth[order], s=size, cmap="viridis", linewidths=0)
        extent = 1.06 * max(np.abs(across).max(), np.abs(up).max(), 1e-6)
        axes.set(aspect="equal", xlim=(-extent, extent), ylim=(-extent, extent))
        axes.axis("off")
    figure.subplots_adjust(0, 0, 1, 1, 0, 0)
    target = BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(target, format="png", transparent=True)
    return _address("image/png", target)


def _seen_from_above(points: np.ndarray) -> np.ndarray:
    """Turn points by 35 degrees about the third axis and look down at 25: (3, points) across, up, towards the eye."""
    turn, tilt = np.radians(35), np.radians(25)
    x, y, z = points.T
    across = np.cos(turn) * x + np.sin(turn) * y
    away = np.cos(turn) * y - np.sin(turn) * x
    return np.stack([across, np.cos(tilt) * z + np.sin(tilt) * away, np.sin(tilt) * z - np.cos(tilt) * away])


def _address(kind: str, content: BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
