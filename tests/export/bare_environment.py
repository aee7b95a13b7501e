"""Environment that hides all packages but the requirements of an exported MLflow model."""

import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from perceiver_dist.export.mlflow_model import REQUIREMENTS

_HOOK = """import sys
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden!r} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""
_PACKAGES_IN_THE_MODEL = {"perceiver_dist", "pipelines"}


def environment_of_requirements(folder: Path) -> dict[str, str]:
    """Write a `sitecustomize` module that hides all other packages, and return environment variables that load it."""
    installed = packages_installed_by(REQUIREMENTS)
    hidden = {
        module
        for module, packages in packages_distributions().items()
        if not installed & {canonicalize_name(package) for package in packages}
    }
    assert {"ray", "deepspeed", "optuna", "torchmetrics", "webdataset"} <= hidden
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_HOOK.format(hidden=hidden - _PACKAGES_IN_THE_MODEL))
    return {**os.environ, "PYTHONPATH": str(folder), "MLFLOW_DISABLE_TELEMETRY": "true"}


def packages_installed_by(requirements: Iterable[str]) -> set[str]:
    """Return the names of the packages that pip installs for requirements, dependencies included."""
    found: set[str] = set()
    pending = [Requirement(requirement) for requirement in requirements]
    while pending:
        requirement = pending.pop()
        for extra in ("", *requirement.extras):
            key = f"{canonicalize_name(requirement.name)}[{extra}]"
            if key not in found:
                found.add(key)
                pending += [other for other in dependencies_of(requirement.name) if _applies(other, extra)]
    return {key.partition("[")[0] for key in found}


def dependencies_of(package: str) -> list[Requirement]:
    """Return the dependencies of an installed package, those of its extras included."""
    try:
        return [Requirement(dependency) for dependency in requires(package) or []]
    except PackageNotFoundError:
        return []


def _applies(dependency: Requirement, extra: str) -> bool:
    return dependency.marker is None or dependency.marker.evaluate({"extra": extra})
