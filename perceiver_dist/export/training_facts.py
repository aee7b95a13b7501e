"""Facts about the training of a model: steps, samples, and metrics of the evaluation after these steps."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from perceiver_dist.checkpoint.manifest import MANIFEST, read_manifest
from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.checkpoint.stored_model import StoredModel
from perceiver_dist.errors import UserError
from perceiver_dist.strict_json import numbers, to_json
from pipelines.storage.files import join, list_folder, read_text

TRAINING = "training.json"
"""File in an exported folder that holds the facts."""


@dataclass(frozen=True)
class TrainingFacts:
    """Facts about a training that are not in its configuration.

    Attributes:
        steps: Optimizer steps taken.
        samples_seen: Samples trained on, over all sources.
        metrics: Metrics on the held-out shards after these steps, such as `fashion/accuracy`; empty if unknown.
    """

    steps: int
    samples_seen: int
    metrics: dict[str, float]

    def to_json(self) -> str:
        """Return the content of training.json."""
        return to_json(asdict(self), indent=1) + "\n"


def training_facts(stored: StoredModel) -> TrainingFacts | None:
    """Read the facts from a checkpoint and its run, or from an exported folder.

    Args:
        stored: The model.

    Returns:
        The facts; None for weights that were not trained or exported by this project.

    Raises:
        UserError: The checkpoint's manifest or training.json is damaged.
    """
    if MANIFEST not in list_folder(stored.place):
        text = read_text(join(stored.place, TRAINING))
        try:
            return _read(text) if text else None
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{join(stored.place, TRAINING)} is damaged ({error}); export the model again"
            ) from error
    progress = read_manifest(stored.place).progress
    result = RunFolder.of_checkpoint(stored.place).read_result()
    return TrainingFacts(progress.steps, progress.samples_seen, _metrics_at(progress.steps, result))


def _metrics_at(steps: int, result: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of a step in result.json, which has those of the run's last and of its best one."""
    if result.get("exit") == "completed" and result["steps"] == steps:
        return dict(result["metrics"])
    best = result.get("best")
    return numbers(best["metrics"]) if best and best["step"] == steps else {}


def _read(text: str) -> TrainingFacts:
    facts = TrainingFacts(**json.loads(text))
    # JSON has null where a metric was NaN.
    return TrainingFacts(facts.steps, facts.samples_seen, numbers(facts.metrics))
