"""Attention figure: one sample next to the cross-attention maps of its latents, as in figure 3 of the paper."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perceiver_dist.display.run_figures import write_figure
from perceiver_dist.modalities import AudioInput, ModalityInput, PointCloudInput, VideoInput

_LATENTS = 2
"""Latents drawn individually per cross-attend, one focused and one different; each adds a column to the figure."""
_CELL_INCHES = 1.7
"""Width of a cell; the widest figure has 10 columns (3 cross-attends) and is 17 inches wide."""

Array = np.ndarray[Any, Any]


def attention_figure(
    arrays: Mapping[str, Array],
    inputs: Mapping[str, ModalityInput],
    maps: Sequence[Mapping[str, Array]],
    title: str,
    path: Path,
) -> None:
    """Draw one sample and its attention weights in the first, second and last cross-attend, as a PNG.

    Each modality has one row: the sample, then for each of these cross-attends the mean over all latents, the most
    focused latent, and the latent that differs most from it. Brightness is relative to the largest weight of each map.

    Args:
        arrays: Modality -> one decoded sample, (*array_shape).
        inputs: Input specification of each modality.
        maps: For each cross-attend, modality -> (N, *grid) weights of the sample, as `attention_maps` returns them.
        title: Title of the figure.
        path: The PNG to write; its folder must exist.
    """
    shown = sorted({0, min(1, len(maps) - 1), len(maps) - 1})
    columns = 1 + len(shown) * (1 + _LATENTS)
    figure = Figure(figsize=(_CELL_INCHES * columns, _CELL_INCHES * len(arrays) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(len(arrays), columns, squeeze=False)
    for row, (name, array) in zip(grid, arrays.items(), strict=True):
        draw = _drawing(array, inputs[name])
        draw(row[0], None)
        row[0].set_ylabel(name, fontsize=8)
        cells = iter(row[1:])
        for number in shown:
            weights = maps[number][name]
            latents = _distinct_latents(maps[number])
            for label, weight in [("mean", weights.mean(0)), *((f"latent {i}", weights[i]) for i in latents)]:
                cell = next(cells)
                # The lower bound avoids a division by zero: a modality may get no attention at all.
                draw(cell, weight / max(float(weight.max()), 1e-12))
                cell.set_title(f"cross-attend {number + 1}\n{label}", fontsize=7)
    write_figure(figure, path)


def _distinct_latents(maps: Mapping[str, Array]) -> list[int]:
    """Return the most focused latent, then those whose weights are least similar to the ones already chosen."""
    flat = np.concatenate([weights.reshape(len(weights), -1) for weights in maps.values()], axis=1)
    # The weights of a latent add up to 1, so the L2 norm is largest where they are most concentrated.
    norms = np.linalg.norm(flat, axis=1)
    similarity = flat @ flat.T / np.outer(norms, norms)
    chosen = [int(norms.argmax())]
    while len(chosen) < min(_LATENTS, len(flat)):
        chosen.append(int(similarity[:, chosen].max(axis=1).argmin()))
    return chosen


def _drawing(array: Array, spec: ModalityInput) -> Callable[[Axes, Array | None], None]:
    """Return a function that draws into a cell: the sample if its weights are None, else the weights."""
    if isinstance(spec, AudioInput):
        return _waveform(array, spec)
    if isinstance(spec, PointCloudInput):
        return _point_cloud(array)
    # A video token spans several frames; draw the first frame of each span.
    return _images(array[:: spec.patch[0]] if isinstance(spec, VideoInput) else array[np.newaxis])


def _images(frames: Array) -> Callable[[Axes, Array | None], None]:
    """Return a function that draws frames (F, height, width, channels) as a grid."""

    def draw(axes: Axes, weights: Array | None) -> None:
        if weights is None:
            image = _tile(frames)
            axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
        else:
            maps = weights.reshape(len(frames), *weights.shape[-2:], 1)
            axes.imshow(_tile(maps)[..., 0], cmap="magma", vmin=0, vmax=1)
        axes.set_xticks([])
        axes.set_yticks([])

    return draw


def _tile(frames: Array) -> Array:
    """Tile (F, height, width, channels) into (rows * height, columns * width, channels), padded with zeros."""
    columns = math.ceil(math.sqrt(len(frames)))
    rows = math.ceil(len(frames) / columns)
    padded = np.concatenate(
        [frames, np.zeros((rows * columns - len(frames), *frames.shape[1:]), frames.dtype)]
    )
    grid = padded.reshape(rows, columns, *frames.shape[1:])
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * frames.shape[1], columns * frames.shape[2], -1)


def _waveform(array: Array, spec: AudioInput) -> Callable[[Axes, Array | None], None]:
    """Return a function that draws (samples,) over time, with weights as bars or, for a spectrogram, as an image."""

    def draw(axes: Axes, weights: Array | None) -> None:
        axes.set_xticks([])
        axes.set_yticks([])
        if weights is not None and spec.mel_bands is not None:
            axes.imshow(weights.T, cmap="magma", vmin=0, vmax=1, aspect="auto", origin="lower")
            return
        seconds = len(array) / spec.sample_rate
        times = np.linspace(0, seconds, len(array), endpoint=False)
        axes.plot(times, array / max(float(np.abs(array).max()), 1), linewidth=0.3, color="lightgray")
        if weights is not None:
            edges = np.linspace(0, seconds, len(weights) + 1)
            axes.stairs(weights, edges, fill=True, color="tab:orange", alpha=0.8)
        axes.set_ylim(-1.05, 1.05)

    return draw


def _point_cloud(array: Array) -> Callable[[Axes, Array | None], None]:
    """Return a function that draws (points, 3) from the front, high weights on top."""

    def draw(axes: Axes, weights: Array | None) -> None:
        order = np.argsort(array[:, 1] if weights is None else weights)
        colours = array[order, 1] if weights is None else weights[order]
        axes.scatter(
            array[order, 0], array[order, 2], c=colours, s=2, cmap="gray" if weights is None else "magma"
        )
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])

    return draw
