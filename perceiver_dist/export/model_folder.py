"""A checkpoint of any ZeRO stage as a folder that needs neither its run nor the number of ranks that wrote it.

    weights.safetensors     all weights in fp32, by the names of the module's state_dict
    config.yaml             the run's
    classes.json            names of the classes by source
    training.json           steps, samples and results of the training
    mlflow_run_id.txt       the MLflow run of the training
    README.md               the model card

`perceiver_dist.load` reads it.
"""

import json
from pathlib import Path

from safetensors.torch import save

from perceiver_dist.checkpoint.run_folder import CONFIG, MLFLOW_RUN_ID
from perceiver_dist.checkpoint.stored_model import WEIGHTS, StoredModel, find_model
from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.export.atomic_output import atomic_folder
from perceiver_dist.export.model_card import model_card
from perceiver_dist.export.training_facts import TRAINING, training_facts
from perceiver_dist.inference.trained_model import TrainedModel

CLASSES = "classes.json"
CARD = "README.md"


def export_folder(model: str, out: str, licence: str | None = None) -> str:
    """Put weights, configuration, names of the classes and a model card into one folder.

    Args:
        model: A run such as runs/NAME (its newest checkpoint), one of its checkpoints, or an exported folder.
        out: Path or URI of a new folder.
        licence: Under which licence others may use the model, such as apache-2.0; null if that is not stated.

    Returns:
        What was made, in one line.

    Raises:
        UserError: There is no whole model, or something at the new place already.
    """
    stored = find_model(model)
    with atomic_folder(out) as folder:
        write_model(stored, folder, licence)
    return f"exported {stored.place} to {out}"


def write_model(stored: StoredModel, folder: Path, licence: str | None = None) -> None:
    """Write a model's files into a local folder.

    Args:
        stored: The model.
        folder: The folder.
        licence: For the model card.

    Raises:
        UserError: The weights are damaged, or are not those of the configuration.
    """
    facts = training_facts(stored)
    (folder / WEIGHTS).write_bytes(save(stored.weights(), metadata={"format": "pt"}))
    texts = {
        CONFIG: to_yaml(stored.config),
        CLASSES: classes_json(stored),
        CARD: model_card(stored, facts, licence),
    }
    if facts:
        texts[TRAINING] = facts.to_json()
    if stored.mlflow_run_id:
        texts[MLFLOW_RUN_ID] = stored.mlflow_run_id
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    TrainedModel(find_model(str(folder)))  # raises what whoever gets the folder would meet


def classes_json(stored: StoredModel) -> str:
    """Return the names of the classes by source, as JSON.

    Args:
        stored: The model.
    """
    classes = {source.name: source.shown_classes for source in stored.config.sources}
    return json.dumps(classes, indent=1, ensure_ascii=False) + "\n"
