"""Statistics between two logs: losses that a checkpoint carries to another number of ranks give the same means."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import written_checkpoints as written
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed

from perceiver_dist.checkpoint.manifest import LossSum
from perceiver_dist.checkpoint.retention import CheckpointList
from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.training.step_statistics import StepStatistics, StepTotals

SOURCES = ["a", "b"]
CPU = torch.device("cpu")

Loss = tuple[str, float]


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("group")
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def statistics_of(losses: Sequence[Loss], before: dict[str, LossSum] | None = None) -> StepStatistics:
    statistics = StepStatistics(SOURCES, CPU, before or {})
    for source, loss in losses:
        statistics.add(source, torch.tensor(loss))
    return statistics


def logged(statistics: StepStatistics) -> StepTotals:
    return statistics.close(waited=0.0, forward=0.0, rank=0, world_size=1)


def unlogged(statistics: StepStatistics) -> dict[str, LossSum]:
    return statistics.unlogged_losses(statistics.sums())


# Losses of training: fp32, from those of a model that knows everything to those of one that diverges.
of_training = st.floats(2.0**-10, 2.0**10, width=32) | st.sampled_from([math.nan, math.inf])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(SOURCES), of_training), min_size=1, max_size=60),
    st.integers(0, 60),
    st.integers(1, 4),
)
def test_losses_before_and_after_a_checkpoint_give_the_mean_of_an_undisturbed_run_bit_for_bit(
    folder: Path, losses: list[Loss], cut: int, ranks: int
) -> None:
    before, after = losses[:cut], losses[cut:]
    saved = CheckpointList(RunFolder(str(folder)), 1, None, lambda: None, print)
    saved.choose_starting_point()
    of_ranks = [unlogged(statistics_of(before[rank::ranks])) for rank in range(ranks)]
    written.save(saved, folder, 10, ranks, of_ranks)
    restored = CheckpointList(RunFolder(str(folder)), 1, None, lambda: None, print).choose_starting_point()
    found = logged(statistics_of(after, dict(restored.unlogged_losses)))
    expected = logged(statistics_of(losses))
    # Compared as bytes, so that NaN equals NaN.
    assert np.array([found.loss, *found.losses.values()]).tobytes() == (
        np.array([expected.loss, *expected.losses.values()]).tobytes()
    )
    assert list(found.losses) == list(expected.losses)
    assert found.units == len(after)


def test_a_log_in_turn_leaves_nothing_and_one_out_of_turn_leaves_all() -> None:
    statistics = statistics_of([("a", 1.0), ("a", 2.0)])
    assert statistics.close(0.0, 0.0, 0, 1, keep_losses=True).loss == 1.5
    assert unlogged(statistics) == {"a": LossSum(3.0, 2)}
    statistics.add("a", torch.tensor(6.0))
    assert logged(statistics).loss == 3.0
    assert unlogged(statistics) == {}


def test_sums_are_a_copy() -> None:
    statistics = statistics_of([("b", 1.0)])
    sums = statistics.sums()
    statistics.add("b", torch.tensor(1.0))
    assert statistics.unlogged_losses(sums) == {"b": LossSum(1.0, 1)}


def test_times_are_those_since_the_last_log() -> None:
    statistics = statistics_of([("a", 1.0)])
    assert statistics.close(waited=2.0, forward=0.5, rank=0, world_size=1).ranks == ((0.5, 2.0),)
    statistics.add("a", torch.tensor(1.0))
    assert statistics.close(waited=2.25, forward=0.75, rank=0, world_size=1).ranks == ((0.75, 0.25),)
