"""A trained run for tests of inference: a few steps on images and on audio-visual clips."""

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import small_run
from rich.console import Console

from perceiver_dist.modalities import VideoInput
from perceiver_dist.training.driver import run_training
from pipelines.demo.synthetic_clips import render_clip
from pipelines.shards.shard_writer import Sample, write_shards
from pipelines.shards.source import SourceConfig

CLIP_CLASSES = 3


def write_clips(folder: Path, count: int, name: str, seed: int) -> None:
    """Write shards of clips of about one second, labelled 0, 1, 2, 0, ..."""
    random = np.random.default_rng(seed)
    samples: list[Sample] = [
        {"__key__": f"{n:04d}", "mp4": render_clip(n % 9, random), "cls": n % CLIP_CLASSES}
        for n in range(count)
    ]
    write_shards(samples, folder, name, samples_per_shard=6)


def train(folder: Path) -> dict[str, Any]:
    """Write shards to `folder`/data, train to `folder`/runs/small, and return the content of result.json."""
    small_run.write_data(folder / "data", train=40, evaluation=21)
    write_clips(folder / "data" / "clips", 8, "train", seed=0)
    write_clips(folder / "data" / "clips", 10, "eval", seed=1)
    config = small_run.small_config(
        folder / "data", folder / "runs", "small", steps=6, num_workers=1, micro_batch=4, lanes=2
    )
    video = VideoInput(frames=4, frames_per_second=8, height=16, width=16, patch=(2, 8, 8), bands=2)
    clips = SourceConfig(
        name="clips",
        train_shards=f"{folder}/data/clips/train-*.tar",
        eval_shards=f"{folder}/data/clips/eval-*.tar",
        modalities=["audio", "video"],
        num_classes=CLIP_CLASSES,
        class_names=["first", "second", "third"],
    )
    config = replace(config, model=replace(config.model, video=video), sources=[config.sources[0], clips])
    return run_training(config, Console(file=StringIO()))
