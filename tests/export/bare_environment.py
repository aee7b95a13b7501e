"""Processes that see nothing but what an exported MLflow model asks pip for."""

import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from perceiver_dist.export.mlflow_model import REQUIREMENTS

_HOOK = """import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden!r} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
_FROM_THE_MODEL = {"perceiver_dist", "pipelines"}


def environment_of_requirements(folder: Path) -> dict[str, str]:
    """Write a module that hides all others but those that the requirements bring; return the environment."""
    brought = packages_brought_by(REQUIREMENTS)
    hidden = {
        module
        for module, packages in packages_distributions().items()
        if not brought & {canonicalize_name(package) for package in packages}
    }
    assert {"ray", "deepspeed", "optuna", "torchmetrics", "webdataset"} <= hidden
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_HOOK.format(hidden=hidden - _FROM_THE_MODEL))
    return {**os.environ, "PYTHONPATH": str(folder), "MLFLOW_DISABLE_TELEMETRY": "true"}


def packages_brought_by(requirements: Iterable[str]) -> set[str]:
    """Names of the packages that pip installs for requirements."""
    found: set[str] = set()
    waiting = [Requirement(requirement) for requirement in requirements]
    while waiting:
        wanted = waiting.pop()
        for extra in ("", *wanted.extras):
            key = f"{canonicalize_name(wanted.name)}[{extra}]"
            if key not in found:
                found.add(key)
                waiting += [need for need in needs_of(wanted.name) if _applies(need, extra)]
    return {key.partition("[")[0] for key in found}


def needs_of(package: str) -> list[Requirement]:
    """What an installed package requires, with the extras that it would be for."""
    try:
        return [Requirement(need) for need in requires(package) or []]
    except PackageNotFoundError:
        return []


def _applies(need: Requirement, extra: str) -> bool:
    return need.marker is None or need.marker.evaluate({"extra": extra})
