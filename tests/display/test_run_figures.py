"""Tests of the figures of a run: complete PNG files of the expected size and colours."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from perceiver_dist.display.run_figures import confusion_matrix_figure, learning_curves_figure
from perceiver_dist.errors import InternalError


@pytest.mark.parametrize("classes", [2, 10, 30])
def test_the_figure_grows_with_the_number_of_classes(classes: int, tmp_path: Path) -> None:
    counts = np.eye(classes, dtype=int) * 1000
    confusion_matrix_figure(counts, [f"class {i}" for i in range(classes)], tmp_path / "matrix.png")
    pixels = imread(tmp_path / "matrix.png")
    assert min(pixels.shape[:2]) > 60 * classes
    assert [file.name for file in tmp_path.iterdir()] == ["matrix.png"]


def test_cells_are_coloured_by_their_share_of_the_row_and_an_empty_row_is_white(tmp_path: Path) -> None:
    confusion_matrix_figure(np.array([[1, 0], [0, 0]]), ["rare", "absent"], tmp_path / "matrix.png")
    pixels = imread(tmp_path / "matrix.png")[..., :3]
    dark_blue = (pixels[..., 2] > 0.3) & (pixels[..., 0] < 0.1)
    rows, columns = np.nonzero(dark_blue)
    assert len(rows) > 0
    assert rows.max() < pixels.shape[0] / 2
    assert columns.max() < pixels.shape[1] * 0.6


def test_counts_that_do_not_match_the_class_names_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match=r"shape \(3, 3\), 2 class names need \(2, 2\)"):
        confusion_matrix_figure(np.eye(3), ["a", "b"], tmp_path / "matrix.png")


@pytest.mark.parametrize(("metrics", "columns"), [(1, 1), (2, 2), (3, 3), (5, 3)])
def test_every_metric_gets_a_panel(metrics: int, columns: int, tmp_path: Path) -> None:
    history = [{"step": step, **{f"fashion/m{i}": step * i for i in range(metrics)}} for step in range(60)]
    learning_curves_figure(history, tmp_path / "curves.png")
    height, width = imread(tmp_path / "curves.png").shape[:2]
    assert (width, height) == (720 * columns, 480 * -(-metrics // 3))


def test_sources_logged_at_different_steps_are_drawn_together(tmp_path: Path) -> None:
    history = [{"step": 1, "a/loss": 1.0}, {"step": 2, "b/loss": 1.0}, {"step": 3, "a/loss": 0.5}]
    learning_curves_figure(history, tmp_path / "two.png")
    learning_curves_figure([entry for entry in history if "a/loss" in entry], tmp_path / "one.png")
    assert imread(tmp_path / "two.png").shape == imread(tmp_path / "one.png").shape
    assert not np.array_equal(imread(tmp_path / "two.png"), imread(tmp_path / "one.png"))


def test_a_history_without_metrics_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="none of the 1 entries of the history has a metric"):
        learning_curves_figure([{"step": 1}], tmp_path / "curves.png")
