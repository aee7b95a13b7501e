"""From a folder of meshes to a trained model: two classes of solids, trained alongside a source of images."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import small_run
from rich.console import Console

from perceiver_dist.modalities import PointCloudInput
from perceiver_dist.training.driver import run_training
from pipelines.convert import convert_modelnet, write_conversion

CORNERS = {
    "box": [[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)],
    "pyramid": [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0.5, 0.5, 1]],
}
FACES = {
    "box": ["4 0 1 3 2", "4 4 6 7 5", "4 0 4 5 1", "4 2 3 7 6", "4 0 2 6 4", "4 1 5 7 3"],
    "pyramid": ["4 0 3 2 1", "3 0 1 4", "3 1 2 4", "3 2 3 4", "3 3 0 4"],
}


def write_solids(tree: Path, train: int = 20, test: int = 7) -> Path:
    """Write OFF files of boxes and pyramids of random sizes in ModelNet's folder structure; return `tree`."""
    random = np.random.default_rng(0)
    for label, corners in CORNERS.items():
        for split, count in (("train", train), ("test", test)):
            folder = tree / label / split
            folder.mkdir(parents=True)
            for number in range(count):
                sized = np.array(corners) * random.uniform(1, 9, 3)
                lines = [
                    f"OFF{len(sized)} {len(FACES[label])} 0",
                    *(" ".join(map(str, row)) for row in sized),
                ]
                (folder / f"{label}_{number}.off").write_text("\n".join([*lines, *FACES[label], ""]))
    return tree


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_meshes_train_alongside_images(tmp_path: Path) -> None:
    small_run.write_data(tmp_path / "data", train=20, evaluation=8)
    solids = convert_modelnet(write_solids(tmp_path / "tree"), str(tmp_path / "solids"), samples_per_shard=16)
    write_conversion(solids, lambda _done, _of: None)
    config = small_run.small_config(tmp_path / "data", tmp_path / "runs", "points", steps=3, micro_batch=4)
    model = replace(config.model, points=PointCloudInput(points=32, bands=2), audio=None)
    sources = [config.sources[0], replace(solids.source, weight=2)]
    result = run_training(replace(config, model=model, sources=sources), Console(file=StringIO()))
    assert (result["exit"], result["steps"]) == ("completed", 3)
    metrics = result["metrics"]
    assert (metrics["squares/samples"], metrics["solids/samples"]) == (8, 14)
    assert 0 < metrics["solids/loss"] < 2
