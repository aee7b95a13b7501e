"""Exported model with random weights, and files that match its inputs."""

import wave
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.run_config import RunConfig, StorageConfig, TrainConfig
from perceiver_dist.modalities import AudioInput, ImageInput
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.perceiver import Perceiver
from pipelines.shards.source import SourceConfig

SOUND_SAMPLES = 400
PICTURES = SourceConfig("pictures", "x.tar", ["image"], 3, class_names=["cat", "dog", "emu"])
SCENES = SourceConfig("scenes", "x.tar", ["image", "audio"], 4, task="multilabel")
SOUNDS = SourceConfig("sounds", "x.tar", ["audio"], 2)


def config_of(folder: Path, *sources: SourceConfig) -> RunConfig:
    """Return a configuration with images of 4 x 4 pixels and audio windows of 400 samples."""
    return RunConfig(
        model=ModelConfig(
            latents=4,
            width=16,
            heads=2,
            image=ImageInput(height=4, width=4, channels=1, bands=2),
            audio=AudioInput(sample_rate=8000, samples=SOUND_SAMPLES, segment=100, bands=2),
        ),
        sources=list(sources) or [PICTURES, SOUNDS],
        train=TrainConfig(micro_batch=4, device="cpu"),
        storage=StorageConfig(path=str(folder / "runs"), run_name="tiny"),
    )


def export(folder: Path, *sources: SourceConfig) -> Path:
    """Write config.yaml and weights.safetensors, the same in each call, and return their folder."""
    config = config_of(folder, *sources)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Perceiver(config.model, config.heads)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)  # large enough for clearly different predictions
    exported = folder / "exported"
    exported.mkdir(parents=True)
    (exported / "config.yaml").write_text(to_yaml(config))
    save_file(model.state_dict(), exported / "weights.safetensors")
    return exported


def pixels(seed: int) -> np.ndarray:
    """Return 4 x 4 random gray pixels."""
    return np.random.default_rng(seed).integers(0, 256, (4, 4), dtype=np.uint8)


def png(seed: int) -> bytes:
    """Return `pixels` as a PNG."""
    target = BytesIO()
    Image.fromarray(pixels(seed)).save(target, "PNG")
    return target.getvalue()


def wav(seed: int, samples: int = SOUND_SAMPLES) -> bytes:
    """Return noise as a WAV."""
    target = BytesIO()
    with wave.open(target, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(np.random.default_rng(seed).integers(-9000, 9000, samples).astype("<i2").tobytes())
    return target.getvalue()
