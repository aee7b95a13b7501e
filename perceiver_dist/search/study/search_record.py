"""What a search has found so far: its only state, kept in `search.json`.

Everything else is computed from it: the next candidate (`candidates.py`), which trials are stopped (`halving.py`),
the report. So a search that is killed goes on by reading this file, and nothing of Ray Tune's has to be restored.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from perceiver_dist.strict_json import numbers, to_json
from perceiver_dist.tracking.mlflow_run import new_identity
from pipelines.storage.files import read_text, write_text

TrialState = Literal["running", "completed", "stopped", "failed"]


@dataclass(frozen=True)
class TrialCost:
    """What a candidate costs, known before it starts.

    Attributes:
        parameters: Trained values of the model with its heads.
        flops_per_sample: FLOPs of one sample's forward pass, the mean over the sources by weight.
        memory_per_rank: Bytes that training holds on a rank.
        steps: Optimizer steps of the trial.
        training_flops: FLOPs of all its steps, forward and backward.
    """

    parameters: int
    flops_per_sample: float
    memory_per_rank: int
    steps: int
    training_flops: float


@dataclass(frozen=True)
class TrialEvaluation:
    """One look at a trial on the held-out shards.

    Attributes:
        number: 1 for the first evaluation of the trial.
        step: Optimizer steps taken.
        score: The search's metric, between 0 and 1.
        metrics: All metrics, `<source>/<metric>`.
    """

    number: int
    step: int
    score: float
    metrics: dict[str, float]


@dataclass
class Trial:
    """One training with one set of values.

    Attributes:
        number: 0 for the first trial.
        values: Dotted name of an option -> value, of everything in the space.
        cost: What it costs.
        state: running (also while it waits for a killed search to be started again), completed (to its last step),
            stopped (by the scheduler) or failed.
        reason: Why it was stopped or failed, one line; "" otherwise.
        evaluations: Those that count, in order.
        step: Optimizer steps taken.
        samples: Samples learned from.
        seconds: Seconds that it ran, summed over the starts of a search.
        mlflow_run_id: Its MLflow run.
        checkpoint: Path or URI of its newest checkpoint; None if there is none.
        history: Of population based training: `{"evaluation", "from_trial", "values_before"}` for each time that the
            trial went on from another's weights.
        start_from: Checkpoint of the trial that it went on from last; None if it never did.
    """

    number: int
    values: dict[str, Any]
    cost: TrialCost
    state: TrialState = "running"
    reason: str = ""
    evaluations: list[TrialEvaluation] = field(default_factory=list)
    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    mlflow_run_id: str = ""
    checkpoint: str | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    start_from: str | None = None

    @property
    def name(self) -> str:
        """Name of the trial's folder and MLflow run, such as trial-007."""
        return f"trial-{self.number:03d}"

    @property
    def score(self) -> float | None:
        """The newest score, None before the first evaluation."""
        return self.evaluations[-1].score if self.evaluations else None

    @property
    def training_flops(self) -> float:
        """FLOPs spent so far."""
        return self.cost.training_flops * self.step / self.cost.steps


@dataclass
class SearchRecord:
    """All trials of a search.

    Attributes:
        options: The search's options as plain mappings; a search that goes on must have the same.
        trials: In the order of their numbers.
        generation: Of population based training: evaluations that all trials have behind them.
        drawn: Candidates drawn, those that were rejected among them.
        rejected: Candidates that were drawn and never tried, by reason.
        mlflow_run_id: The search's own MLflow run, the parent of its trials'.
        identity: What tells the search from all others, those with its name too; see `tracking.MlflowRun`.
        seconds: Seconds that the search ran, summed over its starts.
    """

    options: dict[str, Any] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    generation: int = 0
    drawn: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    mlflow_run_id: str = ""
    identity: str = field(default_factory=new_identity)
    seconds: float = 0.0

    @property
    def completed(self) -> list[Trial]:
        """Trials that were trained to their last step."""
        return [trial for trial in self.trials if trial.state == "completed" and trial.evaluations]

    @property
    def best(self) -> Trial | None:
        """The completed trial with the highest score; of equal ones the cheaper, then the earlier one."""
        return max(
            self.completed,
            key=lambda trial: (trial.score, -trial.cost.training_flops, -trial.number),
            default=None,
        )

    @property
    def baseline(self) -> Trial | None:
        """Trial 0, if it is the configuration with nothing varied."""
        return self.trials[0] if self.trials and self.options.get("baseline") else None

    def save(self, path: str) -> None:
        """Write the record as JSON, whole or not at all.

        Args:
            path: Path or URI of the file.
        """
        best = self.best
        content = {"best": best.name if best else None, **asdict(self)}
        write_text(path, to_json(content, indent=1) + "\n")


def load_record(path: str) -> SearchRecord | None:
    """Read a record that `SearchRecord.save` wrote; None if there is none.

    Args:
        path: Path or URI of the file.
    """
    text = read_text(path)
    if text is None:
        return None
    content = json.loads(text)
    content.pop("best")
    trials = [
        Trial(
            **{
                **trial,
                "cost": TrialCost(**trial["cost"]),
                "evaluations": [
                    TrialEvaluation(**{**evaluation, "metrics": numbers(evaluation["metrics"])})
                    for evaluation in trial["evaluations"]
                ],
            }
        )
        for trial in content.pop("trials")
    ]
    return SearchRecord(trials=trials, **content)
