"""Trained models to export: runs with sharded checkpoints, and folders with random weights."""

import json
import wave
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import ranks
import torch
from PIL import Image
from safetensors.torch import save_file

from perceiver_dist.checkpoint.format import PARTS, WEIGHT, Span, file_header, rank_file, write_rank_file
from perceiver_dist.checkpoint.manifest import Manifest, TrainingProgress, write_manifest
from perceiver_dist.checkpoint.run_folder import checkpoint_name
from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.run_config import RunConfig, StorageConfig
from perceiver_dist.inference.trained_model import Prediction
from perceiver_dist.modalities import AudioInput, ImageInput, PointCloudInput, VideoInput
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.perceiver import Perceiver
from pipelines.shards.source import SourceConfig

Export = Callable[[Sequence[object]], None]
"""Main function of `jobs/export.py`, for arguments of any type."""

CONFIG = replace(
    ranks.CONFIG,
    sources=[
        replace(ranks.CONFIG.sources[0], class_names=["circle", "square", "star"]),
        replace(ranks.CONFIG.sources[1], task="multilabel", eval_shards="held-out|whole.tar"),
    ],
    storage=StorageConfig(run_name="first"),
)
STEPS, SAMPLES = 8, 512
RUN_ID = "0123456789abcdef"
METRICS = {"pictures/accuracy": 0.875}


def write_run(folder: Path, config: RunConfig = CONFIG) -> Path:
    """Write a run with one checkpoint of random weights, half of which belong to each of two ranks."""
    torch.manual_seed(0)
    weights = Perceiver(config.model, config.heads).state_dict()
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    checkpoint = folder / checkpoint_name(STEPS)
    files = []
    for rank in range(2):
        spans, values = [], []
        for part in PARTS:
            for name, weight in weights.items():
                half = weight.flatten().tensor_split(2)[rank]
                spans.append((part, name, Span(rank * (weight.numel() - half.numel()), half.numel())))
                values.append(half if part == WEIGHT else torch.zeros_like(half))
        file = checkpoint / rank_file(rank, 2, "writer")
        files.append(write_rank_file(str(file), file_header(spans, shapes), torch.cat(values)))
    write_manifest(str(checkpoint), Manifest(TrainingProgress(STEPS, SAMPLES, 2, 3, STEPS), tuple(files)))
    finish_run(folder, STEPS, config)
    return folder


def train(folder: Path) -> Path:
    """Train for a few steps at ZeRO stage 3, and return the run's folder."""
    ranks.run_ranks(1, folder, ("losses", ranks.train_and_save, 3))
    run = ranks.run_of(folder, 3, 1)
    finish_run(run, ranks.SAVED_AT)
    return run


def finish_run(run: Path, steps: int, config: RunConfig = CONFIG) -> None:
    """Write the files of a run's folder other than checkpoints."""
    (run / "config.yaml").write_text(to_yaml(config))
    (run / "mlflow_run_id.txt").write_text(RUN_ID)
    write_result(run, steps)


def write_result(run: Path, steps: int) -> None:
    """Write the result.json of a run that completed after a number of steps."""
    result = {"exit": "completed", "steps": steps, "metrics": METRICS}
    (run / "result.json").write_text(json.dumps(result))


def write_exported(folder: Path, config: RunConfig) -> Path:
    """Write an exported folder with random weights."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    save_file(Perceiver(config.model, config.heads).state_dict(), folder / "weights.safetensors")
    return folder


def all_modalities() -> RunConfig:
    """Return a configuration with every modality and the options that are hard to trace."""
    model = ModelConfig(
        latents=4,
        width=16,
        activation_checkpointing=True,
        image=ImageInput(height=8, width=8, pixel_scale="imagenet", permutation_seed=1),
        audio=AudioInput(samples=512, segment=64, mel_bands=4),
        video=VideoInput(frames=2, height=8, width=8),
        points=PointCloudInput(points=20),
    )
    modalities = ["audio", "image", "points", "video"]
    return RunConfig(
        model,
        [SourceConfig("all_at_once", "none", modalities, 3), SourceConfig("other", "none", ["image"], 2)],
    )


def write_sample(folder: Path, number: int) -> list[Path]:
    """Write an image and a sound, and return their paths."""
    random = np.random.default_rng(number)
    image, sound = folder / f"{number}.png", folder / f"{number}.wav"
    Image.fromarray(random.integers(0, 256, (6, 6), dtype=np.uint8)).save(image)
    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(random.integers(-9000, 9000, 64, dtype=np.int16).tobytes())
    return [image, sound]


def probabilities(predictions: list[Prediction]) -> np.ndarray:
    """Stack the probabilities of predictions into (samples, classes)."""
    return np.stack([prediction.probabilities for prediction in predictions])
