"""Figures of a search: the Pareto front, and that figures show what is in the record."""

from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from records import record_of_search

from perceiver_dist.errors import InternalError
from perceiver_dist.search.report.axis_scale import scale_of
from perceiver_dist.search.report.parallel_coordinates import parallel_coordinates_figure
from perceiver_dist.search.report.pareto import CostName, pareto_front
from perceiver_dist.search.report.point_labels import label_points, spread
from perceiver_dist.search.report.search_figures import (
    BASELINE_COLOUR,
    BEST_COLOUR,
    importance_figure,
    learning_curves_figure,
    pareto_figure,
)
from perceiver_dist.search.study.search_record import SearchRecord, Trial, TrialEvaluation

POINTS = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4), st.booleans()), max_size=12)


def trial_at(number: int, parameters: int, score: float, completed: bool) -> Trial:
    cost = replace(record_of_search(1).trials[0].cost, parameters=parameters)
    evaluations = [TrialEvaluation(1, cost.steps, score, {})]
    return Trial(number, {}, cost, "completed" if completed else "stopped", evaluations=evaluations)


def pixels_of(colour: str, path: Path) -> int:
    return int((abs(imread(path)[..., :3] - to_rgb(colour)) < 0.02).all(axis=-1).sum())


@given(POINTS)
def test_the_front_holds_the_trials_that_none_dominates(points: list[tuple[int, int, bool]]) -> None:
    trials = [trial_at(i, cost, score / 4, completed) for i, (cost, score, completed) in enumerate(points)]
    front = {trial.number for trial in pareto_front(trials, "parameters")}
    candidates = [(cost, score) for cost, score, completed in points if completed]
    for number, (cost, score, completed) in enumerate(points):
        cheaper = any(other < cost and other_score >= score for other, other_score in candidates)
        better = any(other <= cost and other_score > score for other, other_score in candidates)
        assert (number in front) == (completed and not cheaper and not better)


@given(POINTS)
def test_scores_rise_along_the_front(points: list[tuple[int, int, bool]]) -> None:
    trials = [trial_at(i, cost, score / 4, completed) for i, (cost, score, completed) in enumerate(points)]
    front = [(trial.cost.parameters, trial.score) for trial in pareto_front(trials, "parameters")]
    assert front == sorted(front)


@pytest.mark.parametrize("cost", ["flops_per_sample", "training_flops", "parameters"])
def test_best_and_baseline_stand_out_at_every_cost(cost: CostName, tmp_path: Path) -> None:
    pareto_figure(record_of_search(), cost, tmp_path / "pareto.png")
    assert pixels_of(BEST_COLOUR, tmp_path / "pareto.png") > 200
    assert pixels_of(BASELINE_COLOUR, tmp_path / "pareto.png") > 200
    assert [file.name for file in tmp_path.iterdir()] == ["pareto.png"]


def test_a_stopped_trial_is_drawn_at_the_flops_of_its_last_evaluation(tmp_path: Path) -> None:
    record = record_of_search()
    pareto_figure(record, "training_flops", tmp_path / "stopped.png")
    record.trials[1].step += 100
    pareto_figure(record, "training_flops", tmp_path / "trained_on.png")
    record.trials[1].evaluations[-1] = replace(record.trials[1].evaluations[-1], step=800)
    pareto_figure(record, "training_flops", tmp_path / "later.png")
    stopped, trained_on, later = (
        (tmp_path / f"{name}.png").read_bytes() for name in ("stopped", "trained_on", "later")
    )
    assert stopped == trained_on
    assert stopped != later


def test_without_a_baseline_none_is_drawn(tmp_path: Path) -> None:
    learning_curves_figure(record_of_search(), tmp_path / "with.png")
    learning_curves_figure(record_of_search(baseline=False), tmp_path / "without.png")
    assert pixels_of(BASELINE_COLOUR, tmp_path / "with.png") > 200
    assert pixels_of(BASELINE_COLOUR, tmp_path / "without.png") == 0


@pytest.mark.parametrize("trials", [1, 2, 14])
def test_parallel_coordinates_accept_any_number_of_trials(trials: int, tmp_path: Path) -> None:
    record = record_of_search(trials)
    parallel_coordinates_figure(record, tmp_path / "lines.png")
    height, width = imread(tmp_path / "lines.png").shape[:2]
    assert width > 200 * len(record.trials[0].values) > height


def test_bars_are_as_long_as_importances(tmp_path: Path) -> None:
    importance_figure({"model.width": 0.75, "model.latents": 0.25}, tmp_path / "bars.png")
    importance_figure({"model.width": 0.75, "model.latents": 0.75}, tmp_path / "equal.png")
    lengths = [pixels_of(BEST_COLOUR, tmp_path / name) for name in ("bars.png", "equal.png")]
    assert lengths[0] / lengths[1] == pytest.approx(2 / 3, rel=0.02)


@pytest.mark.parametrize("draw", [parallel_coordinates_figure, learning_curves_figure])
def test_a_search_without_scores_is_rejected(draw: object, tmp_path: Path) -> None:
    assert callable(draw)
    with pytest.raises(InternalError, match="none of the 0 trials has a score"):
        draw(SearchRecord(), tmp_path / "figure.png")


@pytest.mark.parametrize(
    ("values", "kind", "places"),
    [
        ([16, 32, 64], "linear", [0, 1 / 3, 1]),
        ([1e-4, 1e-3, 1e-2], "log", [0, 0.5, 1]),
        ([0.0, 5, 100], "linear", [0, 0.05, 1]),
        (["none", "all", "some"], "categories", [0.5, 0, 1]),
        ([True, False], "categories", [1, 0]),
        ([None, 8], "categories", [1, 0]),
        ([7, 7], "linear", [0.5, 0.5]),
    ],
)
def test_positions_of_values_by_kind_of_scale(values: list[object], kind: str, places: list[float]) -> None:
    scale = scale_of(values)
    assert scale.kind == kind
    assert [scale.place(value) for value in values] == pytest.approx(places)


def test_an_axis_is_labelled_with_its_values_or_with_round_numbers() -> None:
    assert [label for _, label in scale_of([16, 32, 64]).ticks()] == ["16", "32", "64"]
    many = scale_of([1.3e-4, 1.31e-4, 9e-4, 2.2e-3]).ticks()
    assert [label for _, label in many] == ["0.0002", "0.0005", "0.001", "0.002"]


@given(st.lists(st.floats(0, 1), max_size=20))
def test_spread_labels_keep_their_order_and_distance(places: list[float]) -> None:
    moved = spread(sorted(places), gap=0.04, highest=1.0)
    assert all(above - below >= 0.04 - 1e-9 for below, above in pairwise(moved))
    assert all(-1e-9 <= place <= 1 for place in moved)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20))
def test_point_labels_cover_no_other_label_and_no_point(places: list[tuple[float, float]]) -> None:
    figure = Figure(layout="constrained")
    axes = figure.add_subplot(xlim=(-0.2, 1.2), ylim=(-0.2, 1.2))
    label_points(axes, [(x, y, str(index)) for index, (x, y) in enumerate(places)], preferred=(1, 0))
    boxes = [label.get_window_extent() for label in axes.texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    centers = axes.transData.transform(places)
    assert not any(box.contains(*center) for box in boxes for center in centers)


def test_without_room_for_all_labels_the_last_point_has_one() -> None:
    axes = Figure().add_subplot(xlim=(0, 1), ylim=(0, 1))
    label_points(axes, [(0.5, 0.5, str(number)) for number in range(20)], preferred=(1, 0))
    assert axes.texts[0].get_text() == "19"
    assert 1 <= len(axes.texts) < 20
