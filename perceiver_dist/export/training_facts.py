"""What is known of the training that a model comes from: how far it went, and what came of it."""

import json
from dataclasses import asdict, dataclass

from perceiver_dist.checkpoint.manifest import MANIFEST, read_manifest
from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.checkpoint.stored_model import StoredModel
from perceiver_dist.errors import UserError
from perceiver_dist.strict_json import numbers, to_json
from pipelines.storage.files import join, list_folder, read_text

TRAINING = "training.json"
"""Where an exported folder keeps it."""


@dataclass(frozen=True)
class TrainingFacts:
    """How a model was trained, beside its configuration.

    Attributes:
        steps: Optimizer steps taken.
        samples_seen: Samples learned from, all sources together.
        metrics: Results on the held-out shards after these steps, such as `fashion/accuracy`; empty if unknown.
    """

    steps: int
    samples_seen: int
    metrics: dict[str, float]

    def to_json(self) -> str:
        """Return the facts as they stand in training.json."""
        return to_json(asdict(self), indent=1) + "\n"


def training_facts(stored: StoredModel) -> TrainingFacts | None:
    """Return what a checkpoint and its run, or an exported folder, say of the training.

    Args:
        stored: The model.

    Returns:
        The facts; None for weights that come from elsewhere.

    Raises:
        UserError: The checkpoint's manifest or training.json is damaged.
    """
    if MANIFEST not in list_folder(stored.place):
        text = read_text(join(stored.place, TRAINING))
        try:
            return _read(text) if text else None
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{join(stored.place, TRAINING)} is not as it was written ({error}); export the model anew"
            ) from error
    progress = read_manifest(stored.place).progress
    result = RunFolder.of_checkpoint(stored.place).read_result()
    # The last evaluation says nothing of an earlier checkpoint.
    ended_here = result.get("exit") == "completed" and result["steps"] == progress.steps
    return TrainingFacts(progress.steps, progress.samples_seen, result["metrics"] if ended_here else {})


def _read(text: str) -> TrainingFacts:
    facts = TrainingFacts(**json.loads(text))
    return TrainingFacts(facts.steps, facts.samples_seen, numbers(facts.metrics))
