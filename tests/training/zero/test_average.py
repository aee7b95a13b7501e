"""Moving average of the weights: the same at every ZeRO stage, exact on resume, and what a checkpoint is read as."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import ranks
import torch
from torch import Tensor

from perceiver_dist.checkpoint.format import AVERAGE, WEIGHT, StoredCheckpoint, read_weights
from perceiver_dist.checkpoint.run_folder import checkpoint_name

DECAY = 0.6
"""Below the first limits of the decay, (1 + t) / (10 + t), in all but the first five steps."""

KINDS = [(0, 1), (0, 2), (1, 2), (2, 2), (3, 2)]
"""Stage and world size of the runs that save."""


class Resumed(NamedTuple):
    """Stage and world size of the run that saved, and of the one that loads."""

    saved: tuple[int, int]
    stage: int
    world: int

    def folder(self, folder: Path) -> Path:
        return folder / "resumed-from-{}-{}-at-{}-{}".format(*self.saved, self.stage, self.world)


RESUMED = [Resumed(kind, *kind) for kind in KINDS]
RESUMED += [Resumed((3, 2), 0, 1), Resumed((1, 2), 3, 1), Resumed((0, 1), 2, 2)]


def train(world_size: int, folder: Path, stage: int) -> list[float]:
    """Train with an average, save in between and at the end, and compare the average with that of whole weights."""
    from perceiver_dist.training.zero.average import WeightAverage

    engine = ranks.make_engine(world_size, stage, None, ema_decay=DECAY)
    average, expected = WeightAverage(engine, DECAY, 0), Expected(engine)

    def after_step() -> None:
        average.update()
        expected.update()

    ranks.take_steps(engine, world_size, 0, ranks.SAVED_AT, after_step)
    ranks.save(engine, ranks.run_of(folder, stage, world_size), ranks.SAVED_AT)
    ranks.take_steps(engine, world_size, ranks.SAVED_AT, ranks.STEPS, after_step)
    ranks.save(engine, ranks.run_of(folder, stage, world_size), ranks.STEPS)
    random = torch.get_rng_state()
    model = average.model(ranks.CONFIG)
    assert torch.equal(random, torch.get_rng_state())
    # Of every step of a run of one rank; DeepSpeed's ranks have parts of the weights only.
    difference = max(
        (parameter - expected.values[name]).abs().max().item() if expected.values else 0.0
        for name, parameter in model.named_parameters()
    )
    torch.save(model.state_dict(), folder / f"evaluated-{stage}-{world_size}.pt")
    return [difference]


class Expected:
    """The average as the formula has it, of whole weights; of nothing where weights are partitioned."""

    def __init__(self, engine: Any) -> None:
        self._engine, self._steps = engine, 0
        self.values = self._weights()

    def _weights(self) -> dict[str, Tensor]:
        if self._engine.zero_optimization_stage() == 3:
            return {}
        return {name: each.detach().clone() for name, each in self._engine.module.named_parameters()}

    def update(self) -> None:
        self._steps += 1
        decay = min(DECAY, (1 + self._steps) / (10 + self._steps))
        for name, weight in self._weights().items():
            self.values[name] = decay * self.values[name] + (1 - decay) * weight


def resume(world_size: int, folder: Path, resumed: Resumed) -> list[float]:
    """Continue from the checkpoint of another run, and save at the end."""
    from perceiver_dist.training.zero.average import WeightAverage
    from perceiver_dist.training.zero.optimizer import adam_step

    checkpoint = ranks.checkpoint_of(folder, *resumed.saved)
    engine = ranks.make_engine(world_size, resumed.stage, checkpoint, ema_decay=DECAY)
    average = WeightAverage(engine, DECAY, adam_step(engine))
    losses = ranks.take_steps(engine, world_size, ranks.SAVED_AT, ranks.STEPS, average.update)
    ranks.save(engine, resumed.folder(folder), ranks.STEPS)
    return losses


def begin_later(world_size: int, folder: Path, ema_decay: float) -> list[float]:
    """Load a checkpoint with another option than it was written with, and write it again."""
    saved = ranks.checkpoint_of(folder, 2, 2) if not ema_decay else folder / "without" / checkpoint_name(8)
    engine = ranks.make_engine(world_size, 2, saved, ema_decay=ema_decay)
    ranks.save(engine, folder / ("with" if ema_decay else "without"), 8)
    return []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("average")


@pytest.fixture(scope="module")
def differences(folder: Path) -> dict[str, list[float]]:
    """Differences of the averages from those of whole weights, by the name of the run; the other runs are done too."""
    found: dict[str, list[float]] = {}
    for world in (1, 2):
        found |= ranks.run_ranks(
            world, folder, *((f"{kind}", train, kind[0]) for kind in KINDS if kind[1] == world)
        )
    for world in (1, 2):
        ranks.run_ranks(
            world, folder, *((f"{each}", resume, each) for each in RESUMED if each.world == world)
        )
    ranks.run_ranks(2, folder, ("without", begin_later, 0.0), ("with", begin_later, DECAY))
    return found


def at_the_end(folder: Path) -> StoredCheckpoint:
    return StoredCheckpoint(str(folder / checkpoint_name(ranks.STEPS)))


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, values in found.items():
        # Nothing depends on the bias of a key, so that Adam makes steps of its gradient's rounding errors.
        if not name.endswith(("key_bias", "query_key_value.bias")):
            torch.testing.assert_close(values, expected[name], rtol=1e-3, atol=1e-4)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_average_is_that_of_the_formula(
    differences: dict[str, list[float]], kind: tuple[int, int]
) -> None:
    assert differences[f"{kind}"] == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_stage_and_world_size_has_the_same_average(
    differences: dict[str, list[float]], folder: Path, kind: tuple[int, int]
) -> None:
    assert differences
    expected = at_the_end(ranks.run_of(folder, 0, 1)).whole(AVERAGE)
    found = at_the_end(ranks.run_of(folder, *kind))
    assert_close(found.whole(AVERAGE), expected)
    assert not same(found.whole(AVERAGE), found.whole(WEIGHT))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_evaluated_is_what_a_checkpoint_is_read_as(
    differences: dict[str, list[float]], folder: Path, kind: tuple[int, int]
) -> None:
    assert differences
    evaluated = torch.load(folder / "evaluated-{}-{}.pt".format(*kind), weights_only=True)
    stored = at_the_end(ranks.run_of(folder, *kind))
    assert same(evaluated, stored.whole(AVERAGE))
    assert same(read_weights(stored.uri), evaluated)


@pytest.mark.parametrize("resumed", RESUMED, ids=str)
def test_a_resumed_run_ends_with_the_average_of_the_undisturbed_one(
    differences: dict[str, list[float]], folder: Path, resumed: Resumed
) -> None:
    assert differences
    undisturbed = at_the_end(ranks.run_of(folder, *resumed.saved))
    found = at_the_end(resumed.folder(folder))
    for part in (WEIGHT, AVERAGE):
        if resumed.saved == (resumed.stage, resumed.world):
            assert same(found.whole(part), undisturbed.whole(part))
        assert_close(found.whole(part), undisturbed.whole(part))


def test_an_average_that_begins_later_begins_with_the_weights(
    differences: dict[str, list[float]], folder: Path
) -> None:
    assert differences
    without, later = (
        StoredCheckpoint(str(folder / name / checkpoint_name(8))) for name in ("without", "with")
    )
    assert (without.has_average, later.has_average) == (False, True)
    assert same(read_weights(without.uri), without.whole(WEIGHT))
    assert same(later.whole(AVERAGE), without.whole(WEIGHT))
