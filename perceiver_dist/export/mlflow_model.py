"""Export to an MLflow pyfunc model, for `mlflow.pyfunc.load_model` and `mlflow models serve`, and its registration."""

import logging
import shutil
import tempfile
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pandas as pd

from perceiver_dist.checkpoint.stored_model import StoredModel, find_model
from perceiver_dist.errors import UserError
from perceiver_dist.export.atomic_output import atomic_folder
from perceiver_dist.export.example_files import example_file
from perceiver_dist.export.model_folder import write_model
from perceiver_dist.tracking.mlflow_store import first_line, local_database

# isort: split
# `mlflow_store` above sets MLflow's timeouts, which MLflow reads when it is imported.
import mlflow.pyfunc
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

from perceiver_dist.export import served_model

MODEL_FOLDER = "model"
"""Artifact folder of registered models in the MLflow run of their training, with one subfolder per checkpoint."""
WEIGHTS_FOLDER = "perceiver"
"""Folder below the `data` folder of the MLflow model; `perceiver_dist.load` reads it."""

REQUIREMENTS = (
    "aiohttp",
    "av",
    "braceexpand",
    "fsspec",
    "jsonargparse[signatures]",
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "pyarrow",
    "pyyaml",
    "safetensors",
    "torch",
)
"""Packages that predictions need; neither Ray nor DeepSpeed."""

SIGNATURE = ModelSignature(
    Schema(
        [
            ColSpec(DataType.string, "name"),
            ColSpec(DataType.binary, "content"),  # MLflow's server decodes base64 for this type
            ColSpec(DataType.string, "sample", required=False),
        ]
    ),
    Schema(
        [
            ColSpec(DataType.string, "name"),
            ColSpec(DataType.string, "label"),
            ColSpec(DataType.double, "probability"),
            ColSpec(Array(DataType.double), "probabilities"),
        ]
    ),
    ParamSchema([ParamSpec("source", DataType.string, default="")]),
)


def export_mlflow(
    model: str, out: str | None = None, register: str | None = None, licence: str | None = None
) -> str:
    """Export a model that MLflow loads and serves, to a folder or to the MLflow model registry.

    Args:
        model: Path or URI of a run such as runs/NAME (its newest checkpoint), of a checkpoint, or of an exported
            folder.
        out: Path or URI of a new folder.
        register: NAME@ALIAS to register the model as, such as perceiver@champion, in the MLflow that tracked the
            training; the alias moves from an older version to the new one.
        licence: Licence of the model, for its model card, such as apache-2.0; null if it is not stated.

    Returns:
        One line about the result.

    Raises:
        UserError: The model is missing or damaged, not exactly one of `out` and `register` is given, `out` exists
            already, or MLflow did not register the model.
    """
    if (out is None) == (register is None):
        raise UserError("no single destination: give either --out FOLDER or --register NAME@ALIAS")
    stored = find_model(model)
    if out is not None:
        with atomic_folder(out) as folder:
            write_mlflow_model(stored, folder, licence)
        return f"exported {stored.place} to {out}"
    name, alias = parse_model_name(register or "")
    number = register_model(stored, stored.config.tracking.uri or "", name, alias, licence)
    return f"registered {stored.place} as models:/{name}@{alias}, version {number}"


def write_mlflow_model(stored: StoredModel, folder: Path, licence: str | None = None) -> None:
    """Write an MLflow model: weights, configuration, a copy of this project's code, signature, requirements.

    Args:
        stored: The model.
        folder: An empty local folder.
        licence: Licence for the model card.

    Raises:
        UserError: The weights are damaged, or do not match the configuration.
    """
    # Hides MLflow's messages about its own steps; the job prints one line.
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="perceiver-") as scratch:
        data = Path(scratch) / WEIGHTS_FOLDER
        data.mkdir()
        write_model(stored, data, licence)
        # With a copy of the code, so that the model can be served where this project is not installed.
        mlflow.pyfunc.save_model(
            folder,
            loader_module=served_model.__name__,
            data_path=str(data),
            code_paths=_code(Path(scratch)),
            signature=SIGNATURE,
            input_example=_input_example(stored),
            pip_requirements=requirements(),
        )


def parse_model_name(text: str) -> tuple[str, str]:
    """Parse the name and alias of a registered model.

    Args:
        text: NAME@ALIAS, as in MLflow's models:/NAME@ALIAS.

    Returns:
        Name and alias.

    Raises:
        UserError: The text does not have this form.
    """
    name, at, alias = text.partition("@")
    # MLflow rejects slashes and colons in names. Checked here, before a search that promotes its best trial starts.
    if not (name and at and alias) or set(text) & set("/: "):
        raise UserError(f"the model's name is '{text}', must be NAME@ALIAS, such as perceiver@champion")
    return name, alias


def register_model(
    stored: StoredModel, tracking_uri: str, name: str, alias: str, licence: str | None = None
) -> str:
    """Log a model to the MLflow run of its training, and register it as a new version.

    Args:
        stored: The model.
        tracking_uri: MLflow tracking URI, whose server holds the registry too.
        name: Name of the registered model, which is created if it does not exist.
        alias: Alias for the new version; it moves from an older version.
        licence: Licence for the model card.

    Returns:
        The new version.

    Raises:
        UserError: The MLflow run is unknown, the weights are damaged, or MLflow did not register the model.
    """
    run = stored.mlflow_run_id
    if not run:
        raise UserError(
            f"{stored.place}: the MLflow run of its training is not known, so its registry is not either; "
            "export the model with --out FOLDER"
        )
    database = local_database(tracking_uri)
    # MLflow would create a missing SQLite file and then not find the run in it.
    if database is not None and not database.is_file():
        raise UserError(f"MLflow's database {database}, where the training was tracked, does not exist")
    client = MlflowClient(tracking_uri)
    artifact_path = f"{MODEL_FOLDER}/{stored.place.rpartition('/')[2]}"
    try:
        with tempfile.TemporaryDirectory(prefix="perceiver-") as scratch:
            client.get_run(run)  # fails before the model is written if the run does not exist
            write_mlflow_model(stored, Path(scratch), licence)
            client.log_artifacts(run, scratch, artifact_path)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        created = client.create_model_version(name, f"runs:/{run}/{artifact_path}", run)
        # Last, so that the alias never points to a version without files.
        client.set_registered_model_alias(name, alias, created.version)
    except UserError:
        raise
    except Exception as failure:
        # Stores of files raise the errors of their own clients.
        raise UserError(
            f"MLflow at {tracking_uri} did not register the model: {first_line(failure)}"
        ) from failure
    return str(created.version)


def requirements() -> list[str]:
    """Return pip requirements for predictions, pinned to the versions that are installed here."""
    plain = {name: name.partition("[")[0] for name in REQUIREMENTS}
    # PyPI has no local versions such as 2.14.1+cpu.
    return [f"{name}=={version(package).partition('+')[0]}" for name, package in plain.items()]


def _code(scratch: Path) -> list[str]:
    """Copy this project's packages without the data files in them."""
    copies = []
    for package in ("perceiver_dist", "pipelines"):
        original = Path(str(files(package)))
        copy = scratch / "code" / original.name
        shutil.copytree(original, copy, ignore=_without_modules)
        copies.append(str(copy))
    return copies


def _without_modules(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".py") and not _has_modules(Path(folder) / name)]


def _has_modules(path: Path) -> bool:
    return path.is_dir() and any(path.rglob("*.py"))


def _input_example(stored: StoredModel) -> tuple[pd.DataFrame, dict[str, str]]:
    source = stored.config.sources[0]
    name, content = example_file(source.modalities[0])
    return pd.DataFrame({"name": [name], "content": [content]}), {"source": source.name}
