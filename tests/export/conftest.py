"""Fixtures of the export tests: a trained run, and two samples with their expected probabilities."""

import importlib
from pathlib import Path

import models_to_export as models
import numpy as np
import pytest
from models_to_export import Export, probabilities

import perceiver_dist


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run with a checkpoint written by two ranks."""
    return models.write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[list[Path]]:
    """Files of two samples: one with an image and a sound, one with an image only."""
    folder = tmp_path_factory.mktemp("samples")
    return [models.write_sample(folder, 0), models.write_sample(folder, 1)[:1]]


@pytest.fixture(scope="session")
def expected(run: Path, samples: list[list[Path]]) -> np.ndarray:
    """Probabilities (2, 5) of the samples from the checkpoint itself, for source `both`."""
    return probabilities(perceiver_dist.load(run).predict(samples, "both"))


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch) -> Export:
    """Main function of `jobs/export.py`, for arguments of any type."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    job = importlib.import_module("jobs.export")
    return lambda arguments: job.main([str(argument) for argument in arguments])
