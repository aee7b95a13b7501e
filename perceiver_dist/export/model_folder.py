"""Export to a self-contained folder, from a checkpoint of any ZeRO stage and world size.

    weights.safetensors     all weights in fp32, by the names of the module's state_dict
    config.yaml             options of the run
    classes.json            class names by source
    training.json           steps, samples and metrics of the training, if known
    mlflow_run_id.txt       MLflow run of the training, if known
    README.md               model card

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
    """Export weights, configuration, class names and a model card to one folder.

    Args:
        model: Path or URI of a run such as runs/NAME (its newest checkpoint), of a checkpoint, or of an exported
            folder.
        out: Path or URI of a new folder.
        licence: Licence of the model, for its model card, such as apache-2.0; null if it is not stated.

    Returns:
        One line about the result.

    Raises:
        UserError: The model is missing or damaged, or `out` exists already.
    """
    stored = find_model(model)
    with atomic_folder(out) as folder:
        write_model(stored, folder, licence)
    return f"exported {stored.place} to {out}"


def write_model(stored: StoredModel, folder: Path, licence: str | None = None) -> None:
    """Write a model's files into a local folder.

    Args:
        stored: The model.
        folder: The folder, which must exist.
        licence: Licence for the model card.

    Raises:
        UserError: The weights are damaged, or do not match the configuration.
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
    TrainedModel(find_model(str(folder)))  # fails here rather than for those who load the folder


def classes_json(stored: StoredModel) -> str:
    """Return the class names by source, as JSON.

    Args:
        stored: The model.
    """
    classes = {source.name: source.shown_classes for source in stored.config.sources}
    return json.dumps(classes, indent=1, ensure_ascii=False) + "\n"
