"""Units of any shards, scored by a trained model over the cluster: a stream in order, each sample once.

Read tasks make units as they do for an evaluation in training (`pipelines/units/unit_datasource.py`), a pool of actors
that hold the model scores them, and the caller takes them one after the other. Blocks stay single units and in order
all the way; Ray behaves so but does not promise it, so every unit's number is checked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, Dataset
from torch import Tensor

from perceiver_dist.checkpoint.stored_model import StoredModel
from perceiver_dist.data.batches import UnitOrderError, to_batch
from perceiver_dist.errors import UserError
from perceiver_dist.inference.scoring_pool import ScoringPool
from perceiver_dist.inference.trained_model import TrainedModel
from perceiver_dist.inference.views import mean_logits
from perceiver_dist.metrics.subsets import Subset, show_only
from pipelines.shards.shard_index import SourceIndex
from pipelines.shards.source import SourceConfig
from pipelines.units.plan import EvaluationPlan
from pipelines.units.unit_datasource import unit_block, unit_dataset
from pipelines.units.unit_maker import BadSample, UnitMaker


@dataclass(frozen=True)
class ScoringTask:
    """What is to be scored, and what is wanted of it.

    Attributes:
        source: Whose classes.
        index: Where the samples lie.
        batch: Samples in a unit.
        subsets: Subsets of the modalities to show, each in turn.
        views: Windows in time at which each sample is looked at; their mean probabilities count.
        labelled: Whether samples must have labels.
        embeddings: Whether the mean of the latents is wanted as well, of the first subset.
    """

    source: SourceConfig
    index: SourceIndex
    batch: int
    subsets: Sequence[Subset]
    views: int = 1
    labelled: bool = True
    embeddings: bool = False

    @property
    def plan(self) -> EvaluationPlan:
        """Every sample once for each view."""
        return EvaluationPlan(self.index.samples, self.batch, lanes=1, views=self.views)

    @property
    def units(self) -> int:
        """Number of units, those of the same samples counted once."""
        return self.plan.units // self.views


class SampleLocation(NamedTuple):
    """Where a sample lies.

    Attributes:
        shard: Path or URI of its tar file.
        key: Its key within the shard.
    """

    shard: str
    key: str


@dataclass(frozen=True)
class ScoredUnit:
    """What the model says of the samples of a unit; B rows, of which the last may be padded.

    Attributes:
        places: Where the sample of each row lies that is not padded.
        valid: (B,) bool, false where padded and where a sample is bad.
        labels: (B,) int64 for softmax, (B, classes) uint8 for multilabel; zeros where nothing is known.
        present: Modality -> (B,) bool, false where the sample lacks it.
        logits: Subset -> (B, classes) fp32.
        embeddings: (B, D) fp32, the mean of the latents; None if they are not wanted.
        bad: The samples that could not be used.
    """

    places: list[SampleLocation]
    valid: Tensor
    labels: Tensor
    present: dict[str, Tensor]
    logits: dict[Subset, Tensor]
    embeddings: Tensor | None
    bad: list[BadSample]


class Scorers:
    """A trained model on a pool of actors; Ray is running.

    Its weights are handed over, not read again: they may lie where no other machine of a cluster can read.

    Args:
        model: The model, on the host.
        pool: The actors, and the read tasks that feed them.
    """

    def __init__(self, model: TrainedModel, pool: ScoringPool) -> None:
        self._model = model
        self._weights = ray.put(model.model.state_dict())
        self._pool = pool

    def score(self, work: ScoringTask, first: int = 0) -> Iterator[ScoredUnit]:
        """Yield the scored units in order.

        Args:
            work: What is to be scored.
            first: The unit to begin with.

        Raises:
            UserError: A shard is gone, has changed or cannot be read, or a batch does not fit the device's memory.
            UnitOrderError: Ray lost the order of the units.
        """
        rows = self._rows(work, first)
        for unit in range(first, work.units):
            numbers = range(unit * work.views, (unit + 1) * work.views)
            yield _combine(work, [_take(rows, number) for number in numbers], work.plan.unit(numbers.start))
        if next(rows, None) is not None:
            raise UnitOrderError(f"a unit came after unit {work.plan.units - 1}, which is the last")

    def dataset(self, work: ScoringTask, first: int = 0) -> Dataset:
        """Return the stream before it is run: a block of one row for each unit, as `_Scorer` gives it.

        Args:
            work: What is to be scored.
            first: The unit to begin with.
        """
        data = replace(self._model.config.data, tasks=self._pool.readers)
        inputs = self._model.inputs(work.source)
        maker = UnitMaker(work.source, inputs, work.index, work.plan, data, labelled=work.labelled)
        start, stop = first * work.views, work.plan.units
        return unit_dataset(maker, start, stop, data).map_batches(
            _Scorer,
            fn_constructor_args=(
                self._model.stored,
                self._weights,
                self._pool.device,
                replace(work, index=SourceIndex([])),  # which may be large, and is for the read tasks
            ),
            # A batch is a unit. With a size Ray keeps reading out of the actors: a decoder that crashes would take
            # the model with it.
            batch_size=1,
            batch_format="numpy",
            compute=ActorPoolStrategy(size=min(self._pool.actors, stop - start)),
            num_cpus=self._pool.bundle.get("CPU"),
            num_gpus=self._pool.bundle.get("GPU"),
        )

    def _rows(self, work: ScoringTask, first: int) -> Iterator[dict[str, Any]]:
        # The split of one makes an actor run the stream, whose log is then not on this process's screen.
        [stream] = self.dataset(work, first).streaming_split(1)
        try:
            yield from stream.iter_batches(
                batch_size=1, batch_format="numpy", prefetch_batches=self._model.config.data.prefetch_units
            )
        except Exception as error:
            told = _user_error(error)
            if told is not None:
                raise UserError(str(told).splitlines()[0]) from None
            raise


class _Scorer:
    """An actor that holds the model; called with one unit, gives what the model says of it."""

    def __init__(
        self, stored: StoredModel, weights: "ray.ObjectRef[dict[str, Tensor]]", device: str, work: ScoringTask
    ) -> None:
        self._model = TrainedModel(stored, device, ray.get(weights))
        self._work = work

    @torch.no_grad()
    def __call__(self, row: dict[str, Any]) -> pa.Table:
        batch = to_batch(row, self._model.device)
        work, logits, embeddings = self._work, [], []
        try:
            for subset in work.subsets:
                present = show_only(batch.present, subset)
                scores, latents = self._model.logits_and_latents(batch.arrays, present, work.source)
                logits.append(scores.cpu().numpy())
                embeddings.append(latents.mean(1).cpu().numpy() if work.embeddings else np.empty(0))
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"--batch is {work.batch}, for which the GPU has too little memory; lower it"
            ) from error
        passed = {name: row[name][0] for name in ("unit", "valid", "label")}
        flags = {name: column[0] for name, column in row.items() if name.endswith("_present")}
        return unit_block(
            {
                **passed,
                **flags,
                "keys": np.array(batch.keys, object),
                "quarantined": np.array([list(bad) for bad in batch.quarantined], object),
                "logits": np.stack(logits),
                "embeddings": embeddings[0],
            }
        )


def _take(rows: Iterator[dict[str, Any]], due: int) -> dict[str, Any]:
    """Return the next unit, which must be number `due`.

    Raises:
        UnitOrderError: It is another one, or none.
    """
    row = next(rows, None)
    number = None if row is None else int(np.ravel(row["unit"])[0])
    if row is None or number != due:
        raise UnitOrderError(f"unit {due} is due but {'none' if row is None else f'unit {number}'} came")
    return row


def _combine(work: ScoringTask, views: list[dict[str, Any]], samples: Sequence[int]) -> ScoredUnit:
    """Make one of all looks at the same samples; a sample that is bad in one of them is bad."""
    shards = [work.index.shards[work.index.locate(sample)[0]].uri for sample in samples]
    keys = [str(key) for key in views[0]["keys"][0]]
    logits = torch.tensor(np.stack([row["logits"][0] for row in views]))  # (views, subsets, B, classes)
    embeddings = torch.tensor(np.stack([row["embeddings"][0] for row in views]))
    bad = {BadSample(*map(str, sample)) for row in views for sample in row["quarantined"][0]}
    return ScoredUnit(
        places=[
            SampleLocation(shard, key[len(shard) + 1 :]) for shard, key in zip(shards, keys, strict=False)
        ],
        valid=torch.tensor(np.stack([row["valid"][0] for row in views])).all(0),
        labels=torch.tensor(views[0]["label"][0]),
        present={name: torch.tensor(views[0][f"{name}_present"][0]) for name in work.source.modalities},
        logits={
            subset: mean_logits(logits[:, row], work.source.task) for row, subset in enumerate(work.subsets)
        },
        embeddings=embeddings.mean(0) if work.embeddings else None,
        bad=sorted(bad),
    )


def _user_error(error: BaseException | None) -> UserError | None:
    """Return what the user can mend of what Ray raised, if there is such a thing behind it."""
    while error is not None:
        cause = getattr(error, "cause", None)
        if isinstance(error, UserError) and cause is None:
            return error
        error = cause or error.__cause__
    return None
