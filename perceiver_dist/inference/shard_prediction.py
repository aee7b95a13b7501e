"""Distributed batch prediction: every sample of some shards exactly once, written to Parquet files."""

from dataclasses import dataclass, replace
from itertools import islice

from rich.console import Console

from perceiver_dist.display.progress import SamplesLine
from perceiver_dist.errors import UserError
from perceiver_dist.inference.inference_options import PredictionOptions
from perceiver_dist.inference.prediction_parts import (
    PredictionParts,
    PredictionSettings,
    digest_of_shards,
    digest_of_weights,
)
from perceiver_dist.inference.prediction_table import prediction_table
from perceiver_dist.inference.scoring import DistributedScorer, ScoringTask
from perceiver_dist.inference.scoring_pool import allocate_pool
from perceiver_dist.inference.shards import index_for, output_folder
from perceiver_dist.inference.trained_model import TrainedModel, load_model
from pipelines.demo.resolve import resolve_demo
from pipelines.shards.shard_index import SourceIndex
from pipelines.shards.source import SourceConfig
from pipelines.storage.files import absolute_uri
from pipelines.storage.shard_list import expand_shards


@dataclass(frozen=True)
class PredictionSummary:
    """Result of a prediction on shards.

    Attributes:
        out: Path or URI of the folder.
        samples: Number of samples in all parts.
        resumed: Number of samples in parts that an earlier job had written.
        bad: Number of samples without a prediction, in the parts that this job wrote.
    """

    out: str
    samples: int
    resumed: int
    bad: int


def predict_shards(options: PredictionOptions, console: Console) -> PredictionSummary:
    """Predict every sample of some shards once; resume if the folder holds a part of the same predictions.

    Args:
        options: The job's options.
        console: Console for progress lines.

    Returns:
        Counts of samples.

    Raises:
        UserError: The model, the source or a shard does not exist, the cluster is too small, or the folder holds
            predictions with other settings.
    """
    if not options.shards or not options.out:
        raise UserError("give both --shards and --out, the folder for the predictions, or give --files")
    model = load_model(options.model)
    source = replace(model.source(options.source), eval_shards=options.shards)
    source = resolve_demo(source, model.config.storage.path)
    uris = expand_shards(source.eval_shards, source.name)
    out = output_folder(options.out)
    with SamplesLine(console) as line:
        pool = allocate_pool(options.device, options.actors, options.readers, line.message)
        index = index_for(model, {source.name: uris}, out)[source.name]
        parts = PredictionParts(out, _settings(options, model, source, index))
        line.message(f"{model.stored.place}: {pool.actors} x {pool.device}, {pool.readers} readers")
        task = ScoringTask(
            source,
            index,
            parts.settings.batch,
            [tuple(source.modalities)],
            labelled=False,
            embeddings=options.embeddings,
        )
        return _predict(DistributedScorer(model, pool), task, parts, line)


def _settings(
    options: PredictionOptions, model: TrainedModel, source: SourceConfig, index: SourceIndex
) -> PredictionSettings:
    batch = options.batch or model.config.train.micro_batch
    return PredictionSettings(
        model=absolute_uri(model.stored.place),
        weights=digest_of_weights(model),
        source=source.name,
        shards=options.shards or "",
        content=digest_of_shards(index),
        samples=index.samples,
        batch=batch,
        samples_per_part=max(options.samples_per_part // batch, 1) * batch,
        top=min(options.top, source.num_classes),
        embeddings=options.embeddings,
    )


def _predict(
    scorer: DistributedScorer, task: ScoringTask, parts: PredictionParts, line: SamplesLine
) -> PredictionSummary:
    settings = parts.settings
    first = parts.first_missing()
    done = resumed = min(first * settings.samples_per_part, settings.samples)
    if resumed:
        line.message(f"resuming: {parts.out} already holds {resumed:,} of {settings.samples:,} samples")
    line.begin(task.source.name, settings.samples)
    bad = 0
    # One stream for all parts, so that reading does not stop between them.
    units = scorer.score(task, first * settings.units_per_part)
    for number in range(first, settings.parts):
        tables = []
        for unit in islice(units, settings.units_per_part):
            tables.append(prediction_table(unit, task.source, settings.top))
            done += len(unit.locations)
            bad += len(tables[-1]) - tables[-1]["error"].null_count
            line.update(done)
        parts.write(number, tables)
    return PredictionSummary(parts.out, settings.samples, resumed, bad)
