"""Tests of the dry run: the cost of a run, without starting, writing or rendering anything."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from perceiver_dist.config.run_config import RunConfig, StorageConfig, TrainConfig, WorkerRange
from perceiver_dist.modalities import AudioInput, ImageInput
from perceiver_dist.model.model_config import CrossAttentionPath, ModelConfig
from perceiver_dist.model.perceiver import Perceiver
from perceiver_dist.preflight.dry_run import dry_run
from perceiver_dist.preflight.memory import training_memory
from pipelines.shards.shard_index import index_shard
from pipelines.shards.shard_writer import Sample, write_shard
from pipelines.shards.source import SourceConfig

MODEL = ModelConfig(image=ImageInput(height=8, width=8, bands=2), audio=AudioInput(samples=640, bands=2))


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Return a run of 100 steps of 8 samples: images in two shards (30 + 20), weight 3; audio in one (10), weight 1."""
    for name, count in (("image-0", 30), ("image-1", 20), ("sound-0", 10)):
        samples: list[Sample] = [
            {"__key__": f"{number:04d}", "cls": 0, "png": b"not read"} for number in range(count)
        ]
        write_shard(samples, tmp_path / f"{name}.tar")
    sources = [
        SourceConfig("images", f"{tmp_path}/image-{{0,1}}.tar", ["image"], num_classes=10, weight=3),
        SourceConfig("sounds", f"{tmp_path}/sound-*.tar", ["audio"], num_classes=3),
    ]
    train = TrainConfig(steps=100, micro_batch=2, lanes=4, num_workers=2, device="cpu")
    return RunConfig(MODEL, sources, train=train, storage=StorageConfig(str(tmp_path / "runs")))


def index(config: RunConfig, *names: str) -> None:
    folder = Path(config.storage.path)
    for name in names:
        index_shard(f"{folder.parent}/{name}.tar", f"{folder}/index")


def change(config: RunConfig, number: int, **fields: Any) -> RunConfig:
    """Return the configuration with fields of one source replaced."""
    sources = list(config.sources)
    sources[number] = replace(sources[number], **fields)
    return replace(config, sources=sources)


def test_the_number_of_parameters_is_that_of_the_model(config: RunConfig) -> None:
    result = dry_run(config)
    model = Perceiver(config.model, {"images": 10, "sounds": 3})
    assert result["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert result["tokens"] == {"image": 64, "audio": 5}
    assert result["channels"] == 128 + (2 * 2 + 1) + 4
    assert json.loads(json.dumps(result)) == result
    assert result["reading_memory"].keys() == {"rank", "reader", "object_store"}


def test_flops_depend_on_the_modalities_of_the_source(config: RunConfig) -> None:
    both = dry_run(change(config, 1, modalities=["image", "audio"]))
    for kind in ("forward_flops_per_sample", "paper_flops_per_sample"):
        flops = dry_run(config)[kind]
        assert flops["sounds"] < flops["images"] == both[kind]["images"] < both[kind]["sounds"]


def test_flops_depend_on_the_cross_attention_that_the_device_uses(config: RunConfig) -> None:
    def flops(path: CrossAttentionPath, device: Literal["cpu", "cuda"]) -> Any:
        model, train = replace(config.model, cross_attention=path), replace(config.train, device=device)
        result = dry_run(replace(config, model=model, train=train))
        assert result["device"] == device
        return result["forward_flops_per_sample"]

    assert flops("auto", "cpu") == flops("factored", "cuda")
    assert flops("auto", "cuda") == flops("dense", "cpu") != flops("auto", "cpu")


def test_memory_of_an_elastic_run_is_listed_for_both_numbers_of_workers(config: RunConfig) -> None:
    fixed = dry_run(config)
    assert fixed["memory_per_rank"] == training_memory(config, "cpu")
    assert "memory_per_rank_of_all_workers" not in fixed
    elastic = replace(config, train=replace(config.train, num_workers=WorkerRange(1, 4)))
    result = dry_run(elastic)
    assert result["memory_per_rank"] == training_memory(elastic, "cpu", ranks=1)
    assert result["memory_per_rank_of_all_workers"] == training_memory(elastic, "cpu", ranks=4)
    assert result["memory_per_rank"]["total"] > result["memory_per_rank_of_all_workers"]["total"]


def test_epochs_are_known_once_all_shards_are_indexed(config: RunConfig) -> None:
    index(config, "image-0", "sound-0")
    assert dry_run(config)["samples_per_epoch"] == {"images": None, "sounds": 10}
    index(config, "image-1")
    result = dry_run(config)
    assert (result["steps"], result["global_batch"]) == (100, 8)
    assert result["samples_per_epoch"] == {"images": 50, "sounds": 10}
    assert result["epochs"] == {"images": 75 * 8 / 50, "sounds": 25 * 8 / 10}


@pytest.mark.parametrize("field", ["train_shards", "eval_shards"])
def test_a_missing_shard_is_named(config: RunConfig, tmp_path: Path, field: str) -> None:
    [problem] = dry_run(change(config, 0, **{field: f"{tmp_path}/no-such-0.tar"}))["problems"]
    assert re.search(r"no-such-0\.tar: no such file", problem)
    [problem] = dry_run(change(config, 0, **{field: f"{tmp_path}/no-such-*.tar"}))["problems"]
    assert re.search(r"source 'images': no file matches .*no-such-\*\.tar", problem)


def test_demos_are_resolved_but_not_rendered(config: RunConfig) -> None:
    config = change(config, 0, train_shards="demo:fashion_mnist/train-*.tar")
    config = change(config, 1, train_shards="demo:sights_and_sounds/train-*.tar")
    assert dry_run(config)["samples_per_epoch"] == {"images": None, "sounds": None}
    assert not Path(config.storage.path).exists()
    [problem] = dry_run(change(config, 0, train_shards="demo:fashion_mnist/trial-*.tar"))["problems"]
    assert re.search("no file matches .*fashion_mnist/trial-", problem)


def test_ray_deepspeed_and_mlflow_are_not_imported() -> None:
    program = (
        "import sys, perceiver_dist.preflight.dry_run, perceiver_dist.config.command_line;"
        "print({'ray', 'deepspeed', 'mlflow'} & {name.split('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
