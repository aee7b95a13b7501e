"""A picture of where a model looks: a sample beside the attention of its latents, as in the paper's figure 3."""

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
"""Latents shown on their own for each cross-attend."""
_CELL_INCHES = 1.7

Array = np.ndarray[Any, Any]


def attention_figure(
    arrays: Mapping[str, Array],
    inputs: Mapping[str, ModalityInput],
    maps: Sequence[Mapping[str, Array]],
    title: str,
    path: Path,
) -> None:
    """Draw one sample and the first, second and last cross-attend's weights over it, as a PNG.

    Each modality has a row: the sample, then for each of these cross-attends the mean over all latents, the latent that
    looks at the smallest part, and one that looks elsewhere. Brightness is relative to the largest weight of each map.

    Args:
        arrays: Modality -> one decoded sample, (*array_shape).
        inputs: What each modality is decoded to.
        maps: For each cross-attend, modality -> (N, *grid) weights, as `attention_maps` gives them for a sample.
        title: Stands above.
        path: The PNG to write; its folder exists.
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
            focus = _unlike(maps[number])
            for label, part in [("mean", weights.mean(0)), *((f"latent {i}", weights[i]) for i in focus)]:
                cell = next(cells)
                draw(cell, part / max(float(part.max()), 1e-12))
                cell.set_title(f"cross-attend {number + 1}\n{label}", fontsize=7)
    write_figure(figure, path)


def _unlike(maps: Mapping[str, Array]) -> list[int]:
    """The latent whose weights lie on the fewest places, then those that look most unlike the ones before."""
    flat = np.concatenate([weights.reshape(len(weights), -1) for weights in maps.values()], axis=1)
    norms = np.linalg.norm(flat, axis=1)
    likeness = flat @ flat.T / np.outer(norms, norms)
    chosen = [int(norms.argmax())]
    while len(chosen) < min(_LATENTS, len(flat)):
        chosen.append(int(likeness[:, chosen].max(axis=1).argmin()))
    return chosen


def _drawing(array: Array, spec: ModalityInput) -> Callable[[Axes, Array | None], None]:
    """Return what draws a sample (None), or weights of its places, into a cell."""
    if isinstance(spec, AudioInput):
        return _sound(array, spec)
    if isinstance(spec, PointCloudInput):
        return _cloud(array)
    # One frame for each place in time that a token has.
    return _pictures(array[:: spec.patch[0]] if isinstance(spec, VideoInput) else array[np.newaxis])


def _pictures(frames: Array) -> Callable[[Axes, Array | None], None]:
    """(frames, height, width, channels), laid out like a page."""

    def draw(axes: Axes, weights: Array | None) -> None:
        if weights is None:
            page = _page(frames)
            axes.imshow(page[..., 0] if page.shape[-1] == 1 else page, cmap="gray", vmin=0, vmax=255)
        else:
            maps = weights.reshape(len(frames), *weights.shape[-2:], 1)
            axes.imshow(_page(maps)[..., 0], cmap="magma", vmin=0, vmax=1)
        axes.set_xticks([])
        axes.set_yticks([])

    return draw


def _page(frames: Array) -> Array:
    """(frames, height, width, channels) -> (rows * height, columns * width, channels), row by row; zeros at the end."""
    columns = math.ceil(math.sqrt(len(frames)))
    rows = math.ceil(len(frames) / columns)
    padded = np.concatenate(
        [frames, np.zeros((rows * columns - len(frames), *frames.shape[1:]), frames.dtype)]
    )
    grid = padded.reshape(rows, columns, *frames.shape[1:])
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * frames.shape[1], columns * frames.shape[2], -1)


def _sound(array: Array, spec: AudioInput) -> Callable[[Axes, Array | None], None]:
    """(samples,): the wave over time, weights as bars below it or, of a spectrogram, as its image."""

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


def _cloud(array: Array) -> Callable[[Axes, Array | None], None]:
    """(points, 3): seen from the front, high weights on top."""

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
