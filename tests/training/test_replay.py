"""Replay of one unit of a run."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tar_files import write_tar

from perceiver_dist.config.run_config import RunConfig, StorageConfig
from perceiver_dist.errors import UserError
from perceiver_dist.modalities import ImageInput
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.training.replay import describe, replay
from pipelines.shards.source import SourceConfig


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    shard = write_tar(tmp_path / "x.tar", [(f"{number}.cls", str(number).encode()) for number in range(50)])
    return RunConfig(
        model=ModelConfig(latents=4, width=8, image=ImageInput(height=2, width=2)),
        sources=[SourceConfig("digits", str(shard), ["image"], num_classes=50)],
        storage=StorageConfig(path=str(tmp_path / "runs")),
    )


def shown(table: object) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_the_samples_of_a_unit_are_listed(config: RunConfig) -> None:
    lines = shown(replay(config, "digits/1")).splitlines()
    assert len(lines) == 1 + config.train.micro_batch
    row, sample, label, image = lines[1].split()
    assert (row, sample.rpartition("/")[2], image) == ("0", label, "missing")


@pytest.mark.parametrize("name", ["digits", "digits/", "digits/-1", "digits/x", "letters/1", "1"])
def test_an_invalid_unit_name_is_rejected(config: RunConfig, name: str) -> None:
    with pytest.raises(UserError, match=r"name a source \(digits\) and a unit, as in digits/12"):
        replay(config, name)


def test_values_labels_and_replaced_samples_are_listed() -> None:
    unit = {
        "keys": np.array(["a", "b"], object),
        "label": np.array([[0, 1, 1], [0, 0, 0]], np.uint8),
        "audio": np.array([[-2, 4], [0, 0]], np.int16),
        "audio_present": np.array([True, False]),
        "quarantined": np.array([["x.tar", "c", "audio is empty"]], object),
    }
    assert [line.split() for line in shown(describe(unit)).splitlines()[1:]] == [
        ["0", "a", "[1", "2]", "-2", "/", "1.0", "/", "4"],
        ["1", "b", "[]", "missing"],
        ["replaced:", "x.tar/c:", "audio", "is", "empty"],
    ]
