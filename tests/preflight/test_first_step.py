"""First step of a new model: its loss is that of guessing, in every configuration of the project."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.train_multimodal import main
from perceiver_dist.config.command_line import parse_run, run_parser
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.preflight.first_step import first_step

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
ADDED_TO = {"imagenet_permuted": "imagenet", "imagenet_1cross": "imagenet"}
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "search")


def read(name: str) -> RunConfig:
    """Return a configuration with its tokens and depth, but of few, narrow latents."""
    files = [ADDED_TO[name], name] if name in ADDED_TO else [name]
    arguments = [f"--config={CONFIGS / file}.yaml" for file in files]
    config, _ = parse_run(run_parser(""), arguments, [], RunConfig)
    width = min(config.model.width, 64)
    return replace(config, model=replace(config.model, latents=16, width=width, heads=4))


@pytest.mark.parametrize("name", NAMES)
def test_a_new_model_has_the_loss_of_guessing(name: str) -> None:
    for source, found in first_step(read(name), samples=1).items():
        assert found["loss"] == pytest.approx(found["chance"], rel=0.05), source
        assert math.isfinite(sum(found["gradient_norms"].values()))
        assert all(0 <= value <= 1 for value in (*found["entropy"], *found["saturated"]))


def test_the_job_prints_the_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--first_step", f"--config={CONFIGS}/furniture.yaml"]
    assert main(arguments) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    config, _ = parse_run(run_parser(""), arguments[1:], [], RunConfig)
    assert printed == first_step(config)
    found = printed["furniture"]
    assert found["chance"] == math.log(11)
    assert set(found["gradient_norms"]) == {"latents", "cross_attends", "latent_blocks", "heads"}
    assert len(found["entropy"]) == config.model.cross_attends
