"""Data and configuration of a training run that takes seconds: squares and tones, a few hundred samples."""

import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from perceiver_dist.config.optim_config import OptimConfig
from perceiver_dist.config.run_config import RunConfig, StorageConfig, TrackingConfig, TrainConfig
from perceiver_dist.modalities import AudioInput, ImageInput
from perceiver_dist.model.model_config import ModelConfig
from pipelines.shards.shard_writer import Sample, write_shards
from pipelines.shards.source import DataConfig, SourceConfig

CLASSES = 4
STEPS = 100


def square_png(label: int, random: np.random.Generator) -> bytes:
    """Return a noisy PNG with a bright square in the corner given by the label."""
    pixels = random.integers(0, 60, (8, 8), dtype=np.uint8)
    row, column = 4 * (label // 2), 4 * (label % 2)
    pixels[row : row + 4, column : column + 4] += 150
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def tone_wav(label: int, random: np.random.Generator) -> bytes:
    """Return a WAV file of a tone whose pitch is given by the label."""
    time = np.arange(512) / 8000
    wave = 8000 * np.sin(2 * np.pi * 400 * (label + 1) * time + random.uniform(0, 6))
    file = io.BytesIO()
    with av.open(file, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


def write_data(folder: Path, train: int = 90, evaluation: int = 21) -> None:
    """Write the shards of both sources; by default the last unit and the last shard are only partly full."""
    for name, make, field in (("squares", square_png, "png"), ("tones", tone_wav, "wav")):
        for split, count, seed in (("train", train, 0), ("eval", evaluation, 1)):
            random = np.random.default_rng(seed)
            samples: list[Sample] = [
                {"__key__": f"{n:04d}", field: make(n % CLASSES, random), "cls": n % CLASSES}
                for n in range(count)
            ]
            write_shards(samples, folder / name, split, samples_per_shard=40)


def small_config(data: Path, storage: Path, run_name: str, uri: str | None = None, **train: Any) -> RunConfig:
    """Return a configuration for the data of `write_data`.

    Args:
        data: Folder that `write_data` has filled.
        storage: `storage.path`.
        run_name: `storage.run_name`.
        uri: `tracking.uri`; by default a database in the storage folder.
        **train: Options of `TrainConfig` that replace the defaults here.
    """
    options: dict[str, Any] = {
        "steps": STEPS, "micro_batch": 8, "lanes": 4, "num_workers": 2, "cpus_per_worker": 0.5, "log_every": 1,
        "checkpoint_every": 10,
    }  # fmt: skip
    sources = [
        SourceConfig(
            name=name,
            train_shards=f"{data}/{name}/train-*.tar",
            eval_shards=f"{data}/{name}/eval-*.tar",
            modalities=[modality],
            num_classes=CLASSES,
        )
        for name, modality in (("squares", "image"), ("tones", "audio"))
    ]
    return RunConfig(
        model=ModelConfig(
            latents=8,
            width=32,
            image=ImageInput(height=8, width=8, channels=1, bands=4),
            audio=AudioInput(samples=512, segment=64, bands=4),
        ),
        sources=sources,
        optim=OptimConfig(warmup_steps=5),
        train=TrainConfig(**{**options, **train}),
        data=DataConfig(units_per_task=4),
        tracking=TrackingConfig(uri=uri, samples=True),
        storage=StorageConfig(path=str(storage), run_name=run_name),
    )


def losses(folder: Path) -> list[float]:
    """Return the training loss of every logged step of the run in `folder`."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [entry["train/loss"] for entry in entries if "train/loss" in entry]
