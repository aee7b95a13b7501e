"""Rendering of decoded media to data: URLs and SVG paths, so that a page contains no bytes of a shard as they are."""

import base64
import wave
from io import BytesIO

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

MAX_EXACT_SIDE = 96
"""Max side in pixels of an image that is kept exactly (PNG) and shown enlarged; larger ones are photographs (JPEG)."""
_JPEG_QUALITY = 85
"""No visible artifacts at the size of a card, at a fraction of the bytes of quality 95."""
_WAVE_COLUMNS = 300
"""Columns of a waveform and spectrogram: about the pixels of a card's width."""
_WINDOW = 512
"""Samples of a window of the spectrogram: 32 ms at 16 kHz, common for speech."""
_DECIBELS = 75
"""Range of a spectrogram below its loudest value; wide enough to show quiet parts, narrow enough to hide noise."""
_DOT_AREA = 6000.0
"""Total area of the dots of a cloud, in square points, while a dot stays between the min and max size."""
_CLOUD_INCHES, _DOTS_PER_INCH = (4.4, 2.2), 110
"""484 x 242 pixels: two square views, sharp at the width of a card."""


def image_url(pixels: np.ndarray) -> str:
    """Return an image as a data: URL.

    Args:
        pixels: uint8 (height, width, 3).
    """
    target = BytesIO()
    if max(pixels.shape[:2]) <= MAX_EXACT_SIDE:
        Image.fromarray(pixels).save(target, "PNG", optimize=True)
        return _data_url("image/png", target)
    Image.fromarray(pixels).save(target, "JPEG", quality=_JPEG_QUALITY)
    return _data_url("image/jpeg", target)


def audio_url(sound: np.ndarray, rate: int) -> str:
    """Return audio as a data: URL of a WAV file.

    Args:
        sound: int16 (samples,).
        rate: Sample rate, in Hz.
    """
    target = BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(sound.astype("<i2").tobytes())
    return _data_url("audio/wav", target)


def waveform(sound: np.ndarray) -> str:
    """Draw the envelope of audio: an SVG path of width 300 and height 2, where full scale is from -1 to 1.

    Args:
        sound: int16 (samples,), at least one.
    """
    columns = np.array_split(sound / 32768, min(_WAVE_COLUMNS, len(sound)))
    step = _WAVE_COLUMNS / len(columns)
    # Silence would have no height and be invisible.
    upper = [f"{i * step:.1f} {-max(column.max(), 0.01):.3f}" for i, column in enumerate(columns)]
    lower = [f"{i * step:.1f} {-min(column.min(), -0.01):.3f}" for i, column in enumerate(columns)]
    return f"M{'L'.join([*upper, *lower[::-1]])}Z"


def spectrogram_url(sound: np.ndarray) -> str:
    """Draw a spectrogram of audio, from 0 Hz at the bottom to half the sample rate at the top, as a data: URL.

    Args:
        sound: int16 (samples,), at least one.
    """
    # Reflected at its ends, where a jump to silence would light up every frequency.
    padded = np.pad(sound / 32768, _WINDOW // 2, mode="reflect" if len(sound) > _WINDOW else "constant")
    hop = max(1, -(-len(sound) // _WAVE_COLUMNS))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::hop]
    power = np.abs(np.fft.rfft(windows * np.hanning(_WINDOW), axis=1)) ** 2
    # 1e-9 is -90 dB, below any range shown, and keeps the logarithm of silence finite.
    decibels = 10 * np.log10(power + 1e-9)
    shades = np.clip(1 + (decibels - decibels.max()) / _DECIBELS, 0, 1).T[::-1]
    colours = matplotlib.colormaps["magma"](shades, bytes=True)[..., :3]
    target = BytesIO()
    Image.fromarray(np.ascontiguousarray(colours)).save(target, "JPEG", quality=_JPEG_QUALITY)
    return _data_url("image/jpeg", target)


def cloud_url(points: np.ndarray) -> str:
    """Draw a cloud once with z up and once with y up, as a data: URL; nearer points are brighter.

    Files do not state which axis is up, so one of the two views is upright.

    Args:
        points: fp32 (points, 3), approximately from -1 to 1.
    """
    figure = Figure(figsize=_CLOUD_INCHES, dpi=_DOTS_PER_INCH)
    # Few points are drawn larger, so that they are visible. 2.2 and 16 are the min and max area of a dot.
    size = np.clip(_DOT_AREA / len(np.unique(points, axis=0)), 2.2, 16)
    for axes, axes_order in zip(figure.subplots(1, 2), ((0, 1, 2), (2, 0, 1)), strict=True):
        right, up, depth = _seen_from_above(points[:, axes_order])
        order = np.argsort(depth)
        axes.scatter(right[order], up[order], c=depth[order], s=size, cmap="viridis", linewidths=0)
        # 6% margin, so that dots at the edge are whole; 1e-6 for a cloud at one place.
        extent = 1.06 * max(np.abs(right).max(), np.abs(up).max(), 1e-6)
        axes.set(aspect="equal", xlim=(-extent, extent), ylim=(-extent, extent))
        axes.axis("off")
    figure.subplots_adjust(0, 0, 1, 1, 0, 0)
    target = BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(target, format="png", transparent=True)
    return _data_url("image/png", target)


def _seen_from_above(points: np.ndarray) -> np.ndarray:
    """Rotate points by 35 degrees about the third axis and look down at 25: (3, points) right, up, towards the eye."""
    turn, tilt = np.radians(35), np.radians(25)
    x, y, z = points.T
    right = np.cos(turn) * x + np.sin(turn) * y
    away = np.cos(turn) * y - np.sin(turn) * x
    return np.stack([right, np.cos(tilt) * z + np.sin(tilt) * away, np.sin(tilt) * z - np.cos(tilt) * away])


def _data_url(kind: str, content: BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
