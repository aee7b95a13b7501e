"""Imports of the processes of a run: a heavy module that one of them needs costs every other one seconds."""

import json
import subprocess
import sys

import pytest

HEAVY = ("deepspeed", "matplotlib", "mlflow", "optuna", "scipy", "sklearn", "torch", "torchmetrics")


def imported_with(module: str) -> set[str]:
    code = (
        f"import json, sys, {module}; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("module", "needed"),
    [
        ("jobs.train_multimodal", set()),
        ("perceiver_dist.training.driver", {"torch"}),  # Ray Train's TorchTrainer imports it
        ("perceiver_dist.training.worker", set()),
        ("perceiver_dist.training.datasets", set()),
        ("perceiver_dist.training.tracker.actor", set()),
        ("perceiver_dist.training.loop", {"torch"}),
        ("pipelines.units.unit_datasource", set()),
    ],
)
def test_a_module_imports_nothing_heavy_that_its_process_does_not_need(module: str, needed: set[str]) -> None:
    assert imported_with(module) == needed


def test_the_template_stays_fit_to_be_forked() -> None:
    code = """
import importlib, threading
from perceiver_dist.cluster import worker_template
from perceiver_dist.training.worker_imports import TRAINING

for module in TRAINING.first:
    importlib.import_module(module)
worker_template._keep_generator_unused()
for module in (*TRAINING.before_fork, *TRAINING.while_idle, *TRAINING.without_gpu):
    importlib.import_module(module)
import torch
print(worker_template._forks_differ(), threading.active_count(), torch.cuda.is_initialized())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split()[-3:] == ["True", "1", "False"]
