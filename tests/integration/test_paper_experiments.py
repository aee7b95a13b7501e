"""The papers' experiments take steps at their full size, on shards that stand in for their data."""

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pytest
import small_run
from PIL import Image
from rich.console import Console
from test_points import write_solids

from perceiver_dist.command_line import parse_run, run_parser
from perceiver_dist.config import RunConfig, StorageConfig
from perceiver_dist.training.driver import run_training
from pipelines.convert import convert_modelnet, write_conversion
from pipelines.demo.sights_and_sounds import render_clip
from pipelines.write import Sample, write_shards

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
SAMPLES = 8


def photos(folder: Path) -> None:
    """JPEGs of the size of a photograph."""
    random = np.random.default_rng(0)
    samples: list[Sample] = []
    for number in range(SAMPLES):
        target = BytesIO()
        small = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8))
        small.resize((500, 375)).save(target, "JPEG")
        samples.append({"__key__": f"{number}", "jpg": target.getvalue(), "cls": number * 100})
    write_shards(samples, folder, "train", SAMPLES)


def clips(folder: Path) -> None:
    """Short clips with sound, and up to two classes each."""
    random = np.random.default_rng(0)
    samples: list[Sample] = [
        {"__key__": f"{number}", "mp4": render_clip(number, random), "cls": f"{number},500"}
        for number in range(SAMPLES)
    ]
    write_shards(samples, folder, "train", SAMPLES)


def meshes(folder: Path) -> None:
    """Boxes and pyramids."""
    solids = convert_modelnet(write_solids(folder / "tree", SAMPLES, 0), str(folder), SAMPLES)
    write_conversion(solids, lambda _done, _of: None)


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("files", "write", "batch"),
    [
        ("imagenet", photos, 1),
        ("imagenet imagenet_permuted", photos, 1),
        ("imagenet imagenet_1cross", photos, 1),
        ("audioset_raw", clips, 4),
        ("audioset_mel", clips, 2),
        ("audioset_av_mel", clips, 1),
        ("audioset_video", clips, 1),
        ("audioset_av_raw", clips, 2),
        ("modelnet40", meshes, 4),
    ],
)
def test_an_experiment_takes_three_steps(
    tmp_path: Path, files: str, write: Callable[[Path], None], batch: int
) -> None:
    write(tmp_path / "data")
    names = [f"--config={CONFIGS / name}.yaml" for name in files.split()]
    config, _ = parse_run(run_parser(""), names, [], RunConfig)
    shards = replace(config.sources[0], train_shards=f"{tmp_path}/data/train-*.tar", eval_shards="")
    train = replace(
        config.train, steps=3, micro_batch=batch, lanes=1, num_workers=1, device="cpu", log_every=1
    )
    config = replace(
        config, sources=[shards], train=train, storage=StorageConfig(str(tmp_path / "runs"), "experiment")
    )
    result = run_training(config, Console(file=StringIO()))
    assert (result["exit"], result["steps"]) == ("completed", 3)
    assert np.isfinite(small_run.losses(tmp_path / "runs" / "experiment")).all()
