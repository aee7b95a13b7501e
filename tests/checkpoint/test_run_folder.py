"""Folder of a run: options of a resumed run that decide the order of samples."""

from dataclasses import replace
from pathlib import Path

import pytest
import written_checkpoints as written
import yaml

from perceiver_dist.checkpoint.retention import CheckpointList
from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.run_config import RunConfig, StorageConfig
from perceiver_dist.errors import UserError
from perceiver_dist.modalities import ImageInput
from perceiver_dist.model.model_config import ModelConfig
from pipelines.shards.source import SourceConfig

PETS = SourceConfig("pets", "x.tar", ["image"], 3)
CONFIG = RunConfig(ModelConfig(image=ImageInput(4, 4, 1)), [PETS], storage=StorageConfig(run_name="run"))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """The folder of a run with a checkpoint."""
    checkpoints = CheckpointList(RunFolder(str(tmp_path)), 1, None, lambda: None, lambda _: None)
    checkpoints.choose_starting_point()
    checkpoints.workers_started()
    written.save(checkpoints, tmp_path, 10)
    (tmp_path / "config.yaml").write_text(to_yaml(CONFIG))
    return RunFolder(str(tmp_path))


def test_a_resumed_run_keeps_its_balance(folder: RunFolder) -> None:
    folder.check_resumable(CONFIG)
    with pytest.raises(
        UserError, match=r"^sources\.pets\.balance is 0\.5, but run 'run' was started with 0\.0;"
    ):
        folder.check_resumable(replace(CONFIG, sources=[replace(PETS, balance=0.5)]))


def test_a_run_of_a_version_without_balance_had_none(folder: RunFolder) -> None:
    tree = yaml.safe_load(Path(folder.config).read_text())
    del tree["sources"][0]["balance"]
    Path(folder.config).write_text(yaml.safe_dump(tree))
    folder.check_resumable(CONFIG)
    with pytest.raises(UserError, match="balance is 1"):
        folder.check_resumable(replace(CONFIG, sources=[replace(PETS, balance=1.0)]))
