"""What watches a run: a Ray actor that rank 0 tells of every logged step and the driver asks for news.

It outlives a group of workers, so a restart goes on in the same MLflow run and the same learning curves, and a
worker never waits for MLflow: telling an actor takes a fraction of a millisecond.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from perceiver_dist.command_line import to_yaml
from perceiver_dist.config import RunConfig
from perceiver_dist.figures import confusion_matrix_figure, learning_curves_figure
from perceiver_dist.tracking import MlflowLog, RunStatus
from perceiver_dist.training.evaluation import Scores
from pipelines.storage import copy_file, join, read_text, write_text

_HISTORY = "metrics.jsonl"
_SAMPLES = "samples.jsonl"
_RUN_ID = "mlflow_run_id.txt"


@dataclass
class News:
    """What the driver shows of a run.

    Attributes:
        step: Optimizer steps taken; 0 before the first.
        loss: Mean training loss since the last news, in nats.
        samples_per_second: Over all ranks.
        data_wait_fraction: Share of the time that ranks waited for data, 0 to 1.
        scores: `<source>/<metric>` of the newest evaluation of each source.
        user_error: One line that the user can mend, after which nothing is retried; "" for none.
        started_from: Step that the newest group of workers started from; None while none has started.
        restarts: Groups of workers that were started after the first.
    """

    step: int = 0
    loss: float = float("nan")
    samples_per_second: float = 0.0
    data_wait_fraction: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    user_error: str = ""
    started_from: int | None = None
    restarts: int = -1


class Tracker:
    """The record of one run, in its folder and in MLflow.

    Args:
        config: The run's resolved configuration; `storage.run_name` and `tracking.uri` are set.
        folder: Path or URI of the run's folder.
        model_facts: Computed facts of the model (parameters, FLOPs), logged as parameters.
    """

    def __init__(self, config: RunConfig, folder: str, model_facts: Mapping[str, str]) -> None:
        self._config = config
        self._folder = folder
        self._news = News()
        self._history = [json.loads(line) for line in (read_text(join(folder, _HISTORY)) or "").splitlines()]
        self._samples: dict[int, dict[int, list[str]]] = {}
        run_id = read_text(join(folder, _RUN_ID))
        self._log = MlflowLog(
            config.tracking.uri or "",
            config.tracking.experiment,
            config.storage.run_name or "",
            run_id,
            {**flatten(to_plain(config)), **model_facts},
            {"sources": ",".join(config.heads), "zero_stage": str(config.deepspeed.zero_stage)},
        )
        write_text(join(folder, _RUN_ID), self._log.run_id)
        self._log.text("config.yaml", to_yaml(config))

    def run_id(self) -> str:
        """Return the id of the MLflow run."""
        return self._log.run_id

    def news(self) -> News:
        """Return the newest state of the run."""
        return self._news

    def workers_started(self, step: int) -> None:
        """Note that a group of workers starts at `step`; what was recorded after it happens again."""
        self._news.started_from = step
        self._news.restarts += 1
        self._history = [entry for entry in self._history if entry["step"] <= step]

    def trained(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of a logged step.

        Args:
            step: Optimizer steps taken.
            values: `train/<metric>` and `<source>/train_loss`.
        """
        self._news.step = step
        self._news.loss = values["train/loss"]
        self._news.samples_per_second = values["train/samples_per_second"]
        self._news.data_wait_fraction = values["train/data_wait_fraction"]
        self._record(step, values)

    def evaluated(self, step: int, scores: Mapping[str, Scores]) -> None:
        """Record an evaluation and draw its figures.

        Args:
            step: Optimizer steps taken.
            scores: Source name -> scores.
        """
        values = {
            f"{name}/{metric}": value for name, of in scores.items() for metric, value in of.metrics.items()
        }
        self._news.scores.update(values)
        self._record(step, values)
        with tempfile.TemporaryDirectory() as scratch:
            for source in self._config.sources:
                counts = scores[source.name].confusion if source.name in scores else None
                if counts is not None:
                    names = source.class_names or [str(number) for number in range(source.num_classes)]
                    path = Path(scratch) / f"confusion_{source.name}.png"
                    confusion_matrix_figure(counts, names, path)
                    self._keep(path)
            path = Path(scratch) / "learning_curves.png"
            learning_curves_figure(self._history, path)
            self._keep(path)
        self.save()

    def saw_samples(self, step: int, unit: int, keys: list[str]) -> None:
        """Record which samples a step learned from, for an audit of the order."""
        self._samples.setdefault(step, {})[unit] = keys

    def stop_for(self, message: str) -> None:
        """Record an error that the user must mend, so that nothing is retried."""
        self._news.user_error = message

    def save(self) -> None:
        """Write the history to the run's folder."""
        write_text(join(self._folder, _HISTORY), "".join(json.dumps(entry) + "\n" for entry in self._history))
        if self._samples:
            lines = [
                json.dumps({"step": step, "units": {str(unit): units[unit] for unit in sorted(units)}}) + "\n"
                for step, units in sorted(self._samples.items())
            ]
            write_text(join(self._folder, _SAMPLES), "".join(lines))

    def close(self, status: RunStatus, result: Mapping[str, object]) -> None:
        """End the record.

        Args:
            status: How the run went, in MLflow's words.
            result: What result.json holds.
        """
        self.save()
        self._log.dictionary("result.json", result)
        self._log.close(status)

    def _record(self, step: int, values: Mapping[str, float]) -> None:
        self._history.append({"step": step, **values})
        self._log.metrics(step, values)

    def _keep(self, path: Path) -> None:
        copy_file(str(path), join(self._folder, path.name))
        self._log.artifact(path)


def to_plain(config: RunConfig) -> dict[str, object]:
    """Return a configuration as nested mappings with the sources by name."""
    plain = asdict(config)
    plain["sources"] = {source["name"]: source for source in plain["sources"]}
    return plain


def flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Return nested mappings as one: {"train.steps": "1000"}."""
    flat: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = str(value)
    return flat
