"""Record of a search: its trials and their scores, saved in `search.json`.

The record is the only state of a search. Everything else is computed from it: the next candidate (`candidates.py`),
the trials to stop (`halving.py`), the report. A killed search resumes by reading this file, and no state of Ray Tune
has to be restored.
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
    """Cost of a candidate, computed before it starts.

    Attributes:
        parameters: Trainable parameters of the model, including its heads.
        flops_per_sample: FLOPs of the forward pass of one sample, averaged over the sources by weight.
        memory_per_rank: Bytes that training needs on a rank.
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
    """Evaluation of a trial on the held-out shards.

    Attributes:
        number: 1 for the first evaluation of the trial.
        step: Optimizer steps taken before it.
        score: `search.metric`, between 0 and 1.
        metrics: All metrics, `<source>/<metric>` -> value.
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
        values: Dotted name -> value, for every option in the space.
        cost: Its cost, computed in advance.
        state: running (also while its search is interrupted), completed (trained to its last step), stopped (by the
            scheduler) or failed.
        reason: Why it was stopped or failed, one line; "" otherwise.
        evaluations: Its evaluations in order, without those after the one that stopped it.
        step: Optimizer steps taken.
        samples: Samples trained on.
        seconds: Run time, summed over restarts of the search.
        mlflow_run_id: ID of its MLflow run.
        checkpoint: Path or URI of its newest checkpoint; None if there is none.
        history: In population based training, `{"evaluation", "from_trial", "values_before"}` for each time that the
            trial continued from another trial's weights.
        start_from: Checkpoint of the other trial from which it continued last; None if it never did.
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
        """Score of the newest evaluation; None before the first one."""
        return self.evaluations[-1].score if self.evaluations else None

    @property
    def training_flops(self) -> float:
        """Training FLOPs spent so far."""
        return self.cost.training_flops * self.step / self.cost.steps


@dataclass
class SearchRecord:
    """State of a search: all of its trials.

    Attributes:
        options: The options of the search as plain mappings.
        trials: The trials in the order of their numbers.
        generation: In population based training, the number of generations that are complete.
        drawn: Number of candidates drawn, including the rejected ones.
        rejected: Reason -> number of candidates that were drawn and not tried.
        mlflow_run_id: ID of the search's own MLflow run, the parent of the trials' runs.
        identity: Unique ID of the search, also among searches of the same name; see `tracking.mlflow_run.MlflowRun`.
        seconds: Run time of the search, summed over its restarts.
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
        """The completed trial with the highest score; ties go to the cheaper, then to the earlier trial."""
        return max(
            self.completed,
            key=lambda trial: (trial.score, -trial.cost.training_flops, -trial.number),
            default=None,
        )

    @property
    def baseline(self) -> Trial | None:
        """Trial 0, if it is the unchanged configuration; otherwise None."""
        return self.trials[0] if self.trials and self.options.get("baseline") else None

    def save(self, path: str) -> None:
        """Write the record as JSON, atomically.

        Args:
            path: Path or URI of the file.
        """
        best = self.best
        content = {"best": best.name if best else None, **asdict(self)}
        write_text(path, to_json(content, indent=1) + "\n")


def load_record(path: str) -> SearchRecord | None:
    """Read a record that `SearchRecord.save` wrote; return None if the file does not exist.

    Args:
        path: Path or URI of the file.
    """
    text = read_text(path)
    if text is None:
        return None
    content = json.loads(text)
    content.pop("best")  # Derived from the trials; it is in the file for people who read it.
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
