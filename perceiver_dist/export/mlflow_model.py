"""A model in MLflow's form, and its registration: loaded by `mlflow.pyfunc`, served by `mlflow models serve`."""

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
# The modules above say to MLflow how long it may take, before it is imported.
import mlflow.pyfunc
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

from perceiver_dist.export import served_model

MODEL_FOLDER = "model"
"""Where registered models lie among the artifacts of their training's run, each checkpoint's under its own name."""
WEIGHTS_FOLDER = "perceiver"
"""Folder under MLflow's own `data` that `perceiver_dist.load` reads."""

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
"""What predictions need; neither Ray nor DeepSpeed."""

SIGNATURE = ModelSignature(
    Schema(
        [
            ColSpec(DataType.string, "name"),
            ColSpec(DataType.binary, "content"),
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
    """Make a model that MLflow loads and serves, as a folder or in MLflow's registry.

    Args:
        model: A run such as runs/NAME (its newest checkpoint), one of its checkpoints, or an exported folder.
        out: Path or URI of a new folder.
        register: NAME@ALIAS under which the model is registered where the training was tracked, such as
            perceiver@champion; the alias moves there from an older version.
        licence: Under which licence others may use the model, for its card; null if that is not stated.

    Returns:
        What was made, in one line.

    Raises:
        UserError: There is no whole model, not exactly one of `out` and `register` is given, something is at the new
            place already, or MLflow does not register the model.
    """
    if (out is None) == (register is None):
        raise UserError("where to put the model: give either --out FOLDER or --register NAME@ALIAS")
    stored = find_model(model)
    if out is not None:
        with atomic_folder(out) as folder:
            write_mlflow_model(stored, folder, licence)
        return f"exported {stored.place} to {out}"
    name, alias = parse_model_name(register or "")
    number = register_model(stored, stored.config.tracking.uri or "", name, alias, licence)
    return f"registered {stored.place} as models:/{name}@{alias}, version {number}"


def write_mlflow_model(stored: StoredModel, folder: Path, licence: str | None = None) -> None:
    """Write a model in MLflow's form: weights, configuration, this project's code, signature, requirements.

    Args:
        stored: The model.
        folder: A local folder, empty.
        licence: For the model card.

    Raises:
        UserError: The weights are damaged, or are not those of the configuration.
    """
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="perceiver-") as scratch:
        data = Path(scratch) / WEIGHTS_FOLDER
        data.mkdir()
        write_model(stored, data, licence)
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
    """Return name and alias of a registered model.

    Args:
        text: NAME@ALIAS, as in MLflow's models:/NAME@ALIAS.

    Raises:
        UserError: It is not of this form.
    """
    name, at, alias = text.partition("@")
    if not (name and at and alias) or set(text) & set("/: "):
        raise UserError(f"the model's name is '{text}', must be NAME@ALIAS, such as perceiver@champion")
    return name, alias


def register_model(
    stored: StoredModel, tracking_uri: str, name: str, alias: str, licence: str | None = None
) -> str:
    """Add a model to its training's MLflow run, and register it.

    Args:
        stored: The model.
        tracking_uri: Address of MLflow, which holds the registry too.
        name: Name of the registered model, made when missing.
        alias: Alias that the new version gets; it moves there from an older one.
        licence: For the model card.

    Returns:
        The new version.

    Raises:
        UserError: The MLflow run is not known, the weights are damaged, or MLflow does not register the model.
    """
    run = stored.mlflow_run_id
    if not run:
        raise UserError(
            f"{stored.place}: the MLflow run of its training is not known, so there is nowhere to register it; "
            "export it with --out FOLDER"
        )
    database = local_database(tracking_uri)
    if database is not None and not database.is_file():
        raise UserError(f"MLflow's database {database}, where the training was tracked, is not there")
    client = MlflowClient(tracking_uri)
    place = f"{MODEL_FOLDER}/{stored.place.rpartition('/')[2]}"
    try:
        with tempfile.TemporaryDirectory(prefix="perceiver-") as scratch:
            client.get_run(run)
            write_mlflow_model(stored, Path(scratch), licence)
            client.log_artifacts(run, scratch, place)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        made = client.create_model_version(name, f"runs:/{run}/{place}", run)
        client.set_registered_model_alias(name, alias, made.version)
    except MlflowException as failure:
        raise UserError(
            f"MLflow at {tracking_uri} does not register the model: {first_line(failure)}"
        ) from failure
    return str(made.version)


def requirements() -> list[str]:
    """Return what pip has to install for predictions, in the versions that are installed here."""
    plain = {name: name.partition("[")[0] for name in REQUIREMENTS}
    # A local version such as 2.14.1+cpu is on no public index.
    return [f"{name}=={version(package).partition('+')[0]}" for name, package in plain.items()]


def _code(scratch: Path) -> list[str]:
    """Copy this project's modules, without the data that lies among them."""
    copies = []
    for package in ("perceiver_dist", "pipelines"):
        original = Path(str(files(package)))
        copy = scratch / "code" / original.name
        shutil.copytree(original, copy, ignore=_all_but_modules)
        copies.append(str(copy))
    return copies


def _all_but_modules(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".py") and not _holds_modules(Path(folder) / name)]


def _holds_modules(path: Path) -> bool:
    return path.is_dir() and any(path.rglob("*.py"))


def _input_example(stored: StoredModel) -> tuple[pd.DataFrame, dict[str, str]]:
    source = stored.config.sources[0]
    name, content = example_file(source.modalities[0])
    return pd.DataFrame({"name": [name], "content": [content]}), {"source": source.name}
