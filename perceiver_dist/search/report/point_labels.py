"""Labels beside points of a figure, placed where they cover neither each other nor a point."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

_DIRECTIONS = (0, 45, -45, 90, -90, 135, -135, 180)
"""Degrees from the point to its label."""
_DISTANCES = (9, 15, 22)
"""Points (1/72 inch) from the point to the middle of its label's near edge."""
_FONT_SIZE = 8
_POINT_RADIUS = 5
"""Pixels around the middle of a point that labels keep clear of."""


def label_points(axes: Axes, points: Sequence[tuple[float, float, str]], preferred: float) -> None:
    """Write a label beside each point, at the first place that is free, else at the least crowded one.

    Call it when everything else is drawn and the limits are set.

    Args:
        axes: Where the points are.
        points: x and y in data coordinates, and the label.
        preferred: Degrees from a point to its label where there is room: 0 for the right side, 90 for above.
    """
    figure = axes.get_figure(root=True)
    if figure is None or not points:
        return
    figure.draw_without_rendering()  # the layout moves the axes until it has been drawn once
    pixels_per_point = figure.dpi / 72
    directions = sorted(_DIRECTIONS, key=lambda degrees: abs((degrees - preferred + 180) % 360 - 180))
    dots = axes.transData.transform([(x, y) for x, y, _ in points])
    taken: list[Bbox] = []
    for (x, y, text), dot in zip(points, dots, strict=True):
        offsets = [_offset(text, degrees, distance) for distance in _DISTANCES for degrees in directions]
        boxes = [_box(dot, offset, text, pixels_per_point) for offset in offsets]
        costs = [_crowding(box, taken, dots, axes.bbox) for box in boxes]
        chosen = costs.index(min(costs))
        taken.append(boxes[chosen])
        axes.annotate(
            text,
            (x, y),
            xytext=offsets[chosen],
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_FONT_SIZE,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def _offset(text: str, degrees: float, distance: float) -> tuple[float, float]:
    """From the point to the middle of the label, in points; a long label is pushed aside by its own width."""
    angle = math.radians(degrees)
    half_of_rest = (_width(text) - _width("0")) / 2
    return math.cos(angle) * (distance + half_of_rest), math.sin(angle) * distance


def _width(text: str) -> float:
    return 0.62 * _FONT_SIZE * len(text)


def _box(dot: np.ndarray, offset: tuple[float, float], text: str, pixels_per_point: float) -> Bbox:
    middle_x, middle_y = dot + np.array(offset) * pixels_per_point
    width, height = _width(text) * pixels_per_point, 1.1 * _FONT_SIZE * pixels_per_point
    return Bbox.from_bounds(middle_x - width / 2, middle_y - height / 2, width, height)


def _crowding(box: Bbox, taken: Sequence[Bbox], dots: np.ndarray, frame: Bbox) -> int:
    outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
    return (
        2 * sum(box.overlaps(other) for other in taken)
        + sum(box.padded(_POINT_RADIUS).contains(*dot) for dot in dots)
        + 4 * outside
    )


def spread(places: Sequence[float], gap: float, highest: float) -> list[float]:
    """Move places apart, as little as their order allows, so that a label fits at each.

    Args:
        places: In rising order.
        gap: Least distance between two of the places returned.
        highest: Where the last one may stand at most.
    """
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    for index in reversed(range(len(moved))):
        above = moved[index + 1] - gap if index + 1 < len(moved) else highest
        moved[index] = min(moved[index], above)
    return moved
