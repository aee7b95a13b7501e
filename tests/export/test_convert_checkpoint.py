"""Conversion to `transformers` accepts everything that `perceiver_dist.load` reads, without that library."""

import importlib
from pathlib import Path

import models_to_export as models
import pytest
import torch
from safetensors.torch import load_file

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError
from perceiver_dist.modalities import ImageInput
from perceiver_dist.model.model_config import ModelConfig
from pipelines.shards.source import SourceConfig

CONFIG = RunConfig(
    ModelConfig(
        latents=4,
        width=16,
        cross_attends=1,
        self_attends_per_block=1,
        readout="decoder",
        image=ImageInput(height=16, width=16, bands=64, max_frequency=224),
    ),
    [SourceConfig("flowers", "none", ["image"], 3)],
)


def test_run_checkpoint_and_exported_folder_convert_to_the_same_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    convert = importlib.import_module("jobs.convert_checkpoint").main
    run = models.write_run(tmp_path / "runs" / "first", CONFIG)
    folders = [run, run / f"step-{models.STEPS:08d}", models.write_exported(tmp_path / "exported", CONFIG)]
    converted = []
    for number, folder in enumerate(folders):
        out = tmp_path / str(number)
        assert (
            convert(["to_transformers", "--folder", str(folder), "--out", str(out), "--source", "flowers"])
            == 0
        )
        converted.append(load_file(out / "model.safetensors"))
    for other in converted[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in converted[0].items())
    with pytest.raises(UserError, match="no trained model there; name a run such as runs/NAME"):
        convert(["to_transformers", "--folder", str(tmp_path), "--out", str(tmp_path / "none")])
