"""Restart after the loss of a worker that has not started to train; other errors end the training."""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray.train
from ray.train.torch import TorchTrainer
from ray.util import placement_group_table

from perceiver_dist.training.launch import ReleasePlacementGroup, fit_with_restarts


def deadly(folder: Path) -> Callable[[], None]:
    """Return a training function that kills the first process that receives it, and records that in `folder`."""

    # Inside a function, so that it travels by value: the workers cannot import this module.
    class Deadly:
        def __call__(self) -> None:
            (folder / "trained").touch()

        def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
            def handed_over() -> Deadly:
                if not (folder / "killed").exists():
                    (folder / "killed").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return Deadly()

            return handed_over, ()

    return Deadly()


def trainer(
    train: Callable[[], None], folder: Path, datasets: dict[str, Callable[[], Any]] | None = None
) -> TorchTrainer:
    return TorchTrainer(
        train,
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(
            name="run",
            storage_path=str(folder),
            callbacks=[ReleasePlacementGroup("run 'demo'")],  # type: ignore[list-item] # the types are those of Ray Train V1
        ),
        datasets={**(datasets or {})},
    )


@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_lost_while_it_receives_its_function_causes_a_restart(tmp_path: Path) -> None:
    fit_with_restarts(partial(trainer, deadly(tmp_path), tmp_path))
    assert (tmp_path / "killed").exists()
    assert (tmp_path / "trained").exists()
    assert {room["state"] for room in placement_group_table().values()} == {"REMOVED"}


@pytest.mark.usefixtures("ray_cluster")
def test_a_dataset_that_raises_ends_the_training(tmp_path: Path) -> None:
    def refuse() -> None:
        raise ValueError("too often")

    with pytest.raises(ray.train.TrainingFailedError, match="too often"):
        fit_with_restarts(partial(trainer, deadly(tmp_path), tmp_path, {"tones": refuse}))
    assert not (tmp_path / "killed").exists()
