"""Labels beside the points of a figure, dropped where there is no room, and labels along an axis, moved apart.

Not the adjustText package (1.4.0): on these figures it drew labels over their own points, took 8 seconds for 50 trials
instead of one, and imports pyplot, whose state is global. A dropped label loses little: the report's table lists every
trial.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

Direction = tuple[int, int]
"""Where a label is, seen from its point: -1, 0 or 1 to the right, and -1, 0 or 1 up."""

_DIRECTIONS: tuple[Direction, ...] = ((1, 0), (1, 1), (1, -1), (0, 1), (0, -1), (-1, 0), (-1, 1), (-1, -1))
_HORIZONTAL = {1: "left", 0: "center", -1: "right"}
_VERTICAL = {1: "bottom", 0: "center", -1: "top"}
_DISTANCE = 7
"""Points (1/72 inch) from the center of a point to its label, along each axis: twice the radius of the markers."""

_CLEARANCE = 9
"""Pixels between a label and the center of any point: just below `_DISTANCE` at matplotlib's default of 100 dpi. With a
smaller value, a label could seem to belong to another point."""


def label_points(axes: Axes, points: Sequence[tuple[float, float, str]], preferred: Direction) -> None:
    """Label the points that have room for it, so that no label covers a point or another label.

    Call it when everything else is drawn and the limits are set.

    Args:
        axes: Where the points are.
        points: x and y in data coordinates, and the label. Later points are labelled first, and so are more likely to
            have room.
        preferred: The direction to try first.
    """
    figure = axes.get_figure(root=True)
    if figure is None or not points:
        return
    figure.draw_without_rendering()  # The constrained layout moves the axes until the figure was drawn once.
    centers = axes.transData.transform([(x, y) for x, y, _ in points])
    taken: list[Bbox] = []
    for x, y, text in reversed(points):
        for right, up in (preferred, *_DIRECTIONS):
            label = axes.annotate(
                text,
                (x, y),
                xytext=(right * _DISTANCE, up * _DISTANCE),
                textcoords="offset points",
                ha=_HORIZONTAL[right],
                va=_VERTICAL[up],
                fontsize=8,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )
            box = label.get_window_extent()
            if _is_free(box, taken, centers, axes.bbox):
                taken.append(box)
                break
            label.remove()


def _is_free(box: Bbox, taken: Sequence[Bbox], centers: np.ndarray, frame: Bbox) -> bool:
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    return (
        inside
        and not any(box.overlaps(other) for other in taken)
        and not any(box.padded(_CLEARANCE).contains(*center) for center in centers)
    )


def spread(places: Sequence[float], gap: float, highest: float) -> list[float]:
    """Move labels apart along an axis, so that they do not overlap, and keep their order.

    Args:
        places: Positions in ascending order.
        gap: Min distance between two positions.
        highest: Max position.

    Returns:
        Positions in ascending order. They are below 0 if there are more labels than fit.
    """
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    # The first pass may have moved labels beyond the end of the axis; the second moves them back.
    for index in reversed(range(len(moved))):
        above = moved[index + 1] - gap if index + 1 < len(moved) else highest
        moved[index] = min(moved[index], above)
    return moved
