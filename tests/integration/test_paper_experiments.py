"""Configurations of the papers' experiments and the default, from training to predictions, on synthetic shards.

Samples have all their tokens; the number and width of latents are reduced (see `narrowed`) so that each experiment
takes half a minute on two cores. The held-out samples leave some units of the evaluation empty.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_run
from PIL import Image
from rich.console import Console
from test_points import write_solids

from perceiver_dist.config.command_line import parse_run, run_parser
from perceiver_dist.config.run_config import RunConfig, StorageConfig
from perceiver_dist.inference.evaluation_report import write_report
from perceiver_dist.inference.inference_options import EvaluationOptions, PredictionOptions
from perceiver_dist.inference.model_evaluation import evaluate_model
from perceiver_dist.inference.shard_prediction import predict_shards
from perceiver_dist.metrics.subsets import modality_subsets
from perceiver_dist.training.driver import run_training
from pipelines.convert import convert_modelnet, write_conversion
from pipelines.demo.synthetic_clips import render_clip
from pipelines.shards.shard_writer import Sample, write_shards

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
TRAIN, HELD_OUT = 8, 10
BATCH, LANES = 2, 4
"""The held-out samples fill five units, which are padded to eight, a multiple of the lanes: three are empty."""


def write_photos(folder: Path) -> None:
    """Write shards of JPEG files of the size of a typical ImageNet image."""
    random = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("eval", HELD_OUT)):
        samples: list[Sample] = []
        for number in range(count):
            target = BytesIO()
            small = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8))
            small.resize((500, 375)).save(target, "JPEG")
            samples.append({"__key__": f"{number}", "jpg": target.getvalue(), "cls": number * 99})
        write_shards(samples, folder, split, count)


def write_clips(folder: Path) -> None:
    """Write shards of short clips with sound, each with two classes."""
    random = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("eval", HELD_OUT)):
        samples: list[Sample] = [
            {"__key__": f"{number}", "mp4": render_clip(number % 9, random), "cls": f"{number},500"}
            for number in range(count)
        ]
        write_shards(samples, folder, split, count)


def write_meshes(folder: Path) -> None:
    """Write shards of boxes and pyramids."""
    solids = convert_modelnet(write_solids(folder / "tree", TRAIN // 2, HELD_OUT // 2), str(folder), TRAIN)
    write_conversion(solids, lambda _done, _of: None)


def narrowed(config: RunConfig, folder: Path) -> RunConfig:
    """Return the experiment with its own tokens, depth and recipe, but few, narrow latents and two steps."""
    storage = StorageConfig(f"{folder}/runs", "experiment")
    train = replace(
        config.train, steps=2, micro_batch=BATCH, lanes=LANES, num_workers=2, cpus_per_worker=0.5, device="cpu",
        log_every=1, eval_every=1, checkpoint_every=1, keep_checkpoints=1,
    )  # fmt: skip
    return replace(config, model=replace(config.model, latents=16, width=64), train=train, storage=storage)


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("files", "write"),
    [
        ("imagenet", write_photos),
        ("imagenet imagenet_permuted", write_photos),
        ("imagenet imagenet_1cross", write_photos),
        ("audioset_raw", write_clips),
        ("audioset_mel", write_clips),
        ("audioset_av_mel", write_clips),
        ("audioset_video", write_clips),
        ("audioset_av_raw", write_clips),
        ("modelnet40", write_meshes),
    ],
)
def test_an_experiment_runs_from_training_to_predictions(
    tmp_path: Path, files: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / "data")
    names = [f"--config={CONFIGS / name}.yaml" for name in files.split()]
    config, _ = parse_run(run_parser(""), names, [], RunConfig)
    shards = f"{tmp_path}/data/{{}}-*.tar"
    source = replace(
        config.sources[0], train_shards=shards.format("train"), eval_shards=shards.format("eval")
    )
    train_evaluate_predict(replace(narrowed(config, tmp_path), sources=[source]), {source.name: HELD_OUT})


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_the_default_runs_from_training_to_predictions(tmp_path: Path) -> None:
    config, _ = parse_run(run_parser(""), [f"--config={CONFIGS}/default.yaml"], [], RunConfig)
    config = narrowed(config, tmp_path)
    # The 450 and 1,000 held-out samples fill 10 and 21 units of 48.
    config = replace(config, train=replace(config.train, micro_batch=48))
    train_evaluate_predict(config, {"clips": 450, "fashion": 1000})


def train_evaluate_predict(config: RunConfig, held_out: dict[str, int]) -> None:
    """Train with an evaluation and a checkpoint per step, evaluate, predict; check each for every held-out sample."""
    result = run_training(config, Console(file=StringIO()))
    folder = Path(config.storage.path) / "experiment"
    assert (result["exit"], result["steps"], result["restarts"]) == ("completed", 2, 0)
    assert np.isfinite(small_run.losses(folder)).all()
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "train/loss" not in entry] == [1, 2]
    found = evaluate_model(
        EvaluationOptions(model=str(folder), actors=1, readers=1), Console(file=StringIO())
    )
    write_report(found)
    assert set(found.metrics) == set(result["metrics"])
    for source in config.sources:
        assert result["metrics"][f"{source.name}/samples"] == held_out[source.name]
        losses = [name for name in result["metrics"] if name.startswith(f"{source.name}/loss")]
        assert len(losses) == len(modality_subsets(source.modalities))
        for name in losses:
            # Two significant digits: bf16 rounds differently in batches of another size.
            assert found.metrics[name] == pytest.approx(result["metrics"][name], rel=0.02)
        options = PredictionOptions(
            model=str(folder),
            source=source.name,
            shards=source.eval_shards,
            out=f"{folder}/{source.name}",
            actors=1,
            readers=1,
        )
        predicted = predict_shards(options, Console(file=StringIO()))
        assert (predicted.samples, predicted.bad) == (held_out[source.name], 0)
        assert pq.read_table(predicted.out).num_rows == held_out[source.name]
