"""Distributed evaluation of a trained model on any shards: training's metrics, and metrics by class."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from rich.console import Console

from perceiver_dist.display.progress import SamplesLine
from perceiver_dist.errors import UserError
from perceiver_dist.inference.inference_options import EvaluationOptions
from perceiver_dist.inference.scoring import DistributedScorer, ScoringTask
from perceiver_dist.inference.scoring_pool import allocate_pool
from perceiver_dist.inference.shards import index_for, output_folder
from perceiver_dist.inference.trained_model import TrainedModel, load_model
from perceiver_dist.inference.views import check_views
from perceiver_dist.metrics.metric_totals import MetricTotals, Scores, scores_of
from perceiver_dist.metrics.subsets import modality_subsets
from perceiver_dist.metrics.undefined import why_undefined
from pipelines.demo.resolve import resolve_demo
from pipelines.shards.shard_index import SourceIndex
from pipelines.shards.source import SourceConfig
from pipelines.storage.files import join
from pipelines.storage.shard_list import expand_shards
from pipelines.units.unit_maker import BadSample


@dataclass(frozen=True)
class SourceEvaluation:
    """Evaluation of one source.

    Attributes:
        source: The source, with the shards that it was evaluated on as its `eval_shards`.
        index: Index of these shards.
        samples: Number of valid samples.
        bad: Samples that could not be used.
        scores: Metrics for every subset of the modalities, and the confusion matrix.
        by_class: Metric -> value for every class; NaN where it is undefined for a class.
        seconds: Duration.
    """

    source: SourceConfig
    index: SourceIndex
    samples: int
    bad: list[BadSample]
    scores: Scores
    by_class: dict[str, list[float]]
    seconds: float


@dataclass(frozen=True)
class ModelEvaluation:
    """Evaluation of a model.

    Attributes:
        model: The model.
        out: Path or URI of the folder for the report.
        batch: Samples per batch.
        views: Windows in time per sample.
        device: Device of the model, cpu or cuda.
        sources: Evaluation of each source.
    """

    model: TrainedModel
    out: str
    batch: int
    views: int
    device: str
    sources: list[SourceEvaluation]

    @property
    def metrics(self) -> dict[str, float]:
        """`<source>/<metric>` -> value, with the names that result.json of a training uses."""
        return {
            f"{found.source.name}/{name}": value
            for found in self.sources
            for name, value in found.scores.metrics.items()
        }


def evaluate_model(options: EvaluationOptions, console: Console) -> ModelEvaluation:
    """Evaluate a trained model on every sample of some shards, each once.

    Args:
        options: The job's options.
        console: Console for progress lines.

    Returns:
        The evaluation; the report is not written yet.

    Raises:
        UserError: The model, a source or a shard does not exist, an option does not fit the model, the cluster is too
            small, or a source has no valid sample.
    """
    model = load_model(options.model)
    sources = list(_sources(model, options))
    # Before Ray starts, which takes seconds.
    for source in sources:
        check_views(options.views, source)
    steps = model.stored.steps
    out = options.out or join(model.stored.folder, f"evaluation-{steps:08d}" if steps else "evaluation")
    out = output_folder(out)
    shards = {source.name: expand_shards(source.eval_shards, source.name) for source in sources}
    batch = options.batch or model.config.train.micro_batch
    with SamplesLine(console) as line:
        pool = allocate_pool(options.device, options.actors, options.readers, line.message)
        indexes = index_for(model, shards, out)
        line.message(f"{model.stored.place}: {pool.actors} x {pool.device}, {pool.readers} readers")
        scorer = DistributedScorer(model, pool)
        evaluations = [
            _evaluate(scorer, source, indexes[source.name], batch, options.views, line) for source in sources
        ]
    return ModelEvaluation(model, out, batch, options.views, pool.device, evaluations)


def _sources(model: TrainedModel, options: EvaluationOptions) -> Iterator[SourceConfig]:
    """Yield the sources to evaluate, each with the shards to evaluate on as its `eval_shards`.

    Raises:
        UserError: The source does not exist or is ambiguous, or there are no shards.
    """
    storage = model.config.storage.path
    if options.shards:
        yield resolve_demo(replace(model.source(options.source), eval_shards=options.shards), storage)
        return
    sources = [model.source(options.source)] if options.source else model.config.sources
    if not any(source.eval_shards for source in sources):
        raise UserError(
            f"{', '.join(source.name for source in sources)}: trained without held-out shards (eval_shards); set "
            "--source and --shards"
        )
    for source in sources:
        if source.eval_shards:
            yield resolve_demo(source, storage)


def _evaluate(
    scorer: DistributedScorer,
    source: SourceConfig,
    index: SourceIndex,
    batch: int,
    views: int,
    line: SamplesLine,
) -> SourceEvaluation:
    started = time.monotonic()
    task = ScoringTask(source, index, batch, modality_subsets(source.modalities), views)
    # Logits arrive on the host, whatever device the actors use.
    totals = {subset: MetricTotals(source, torch.device("cpu")) for subset in task.subsets}
    bad: list[BadSample] = []
    done = samples = 0
    line.begin(source.name, index.samples)
    for unit in scorer.score(task):
        for subset, total in totals.items():
            total.update(unit.logits[subset], unit.labels, unit.valid)
        bad += unit.bad
        samples += int(unit.valid.sum())
        done += len(unit.locations)
        line.update(done)
    if not samples:
        [(reason, count)] = Counter(sample.reason for sample in bad).most_common(1)
        raise UserError(
            f"source '{source.name}': none of its {index.samples} samples is valid; {count} of them: {reason}"
        )
    all_modalities = totals[task.subsets[0]]
    scores = scores_of(source, totals)
    if undefined := why_undefined(source.name, scores.metrics):
        line.message(f"warning: {undefined}")
    return SourceEvaluation(
        source,
        index,
        samples,
        bad,
        scores,
        all_modalities.by_class(),
        time.monotonic() - started,
    )
