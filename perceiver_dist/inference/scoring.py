"""Distributed scoring: an ordered stream of units with a trained model's logits, each sample exactly once.

Read tasks make units as in the evaluations of a training (`pipelines/units/unit_datasource.py`), a pool of actors with
copies of the model scores them, and the caller iterates over the result. Ray Data keeps one unit per block, in order,
but does not guarantee it, so the number of every unit is checked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

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
from pipelines.units.block_format import StoredBlock, block_of
from pipelines.units.block_order import SingleUnits
from pipelines.units.plan import EvaluationPlan
from pipelines.units.unit_datasource import stored_blocks, unit_dataset
from pipelines.units.unit_maker import BadSample, Unit, UnitMaker


@dataclass(frozen=True)
class ScoringTask:
    """Samples to score, and the outputs to compute for them.

    Attributes:
        source: Source whose head computes the logits.
        index: Index of the shards with the samples.
        batch: Samples per unit.
        subsets: Subsets of the modalities; the model runs once for each.
        views: Windows in time per sample, whose probabilities are averaged.
        labelled: Whether samples must have labels.
        embeddings: Whether to compute the mean of the latents as well, for the first subset.
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
        """Plan with every sample once per view."""
        # One lane, since there is one consumer: no units are added to fill up lanes.
        return EvaluationPlan(self.index.samples, self.batch, lanes=1, views=self.views)

    @property
    def units(self) -> int:
        """Number of scored units: all views of the same samples count as one."""
        return self.plan.units // self.views


class SampleLocation(NamedTuple):
    """Location of a sample.

    Attributes:
        shard: Path or URI of the tar file.
        key: Key of the sample within the shard.
    """

    shard: str
    key: str


@dataclass(frozen=True)
class ScoredUnit:
    """Model outputs for the samples of a unit; B rows, of which the last ones may be padding.

    Attributes:
        locations: Location of the sample of each row, without the padding.
        valid: (B,) bool, false for padding and bad samples.
        labels: (B,) int64 for softmax, (B, classes) uint8 for multilabel; zeros where there is no label.
        present: Modality -> (B,) bool, false where the sample lacks it.
        logits: Subset -> (B, classes) fp32.
        embeddings: (B, D) fp32, the mean of the latents; None if the task has no embeddings.
        bad: Samples that could not be used.
    """

    locations: list[SampleLocation]
    valid: Tensor
    labels: Tensor
    present: dict[str, Tensor]
    logits: dict[Subset, Tensor]
    embeddings: Tensor | None
    bad: list[BadSample]


class DistributedScorer:
    """A trained model, replicated on a pool of Ray actors; Ray must be running.

    Actors get the weights from Ray's object store instead of reading them: other machines of a cluster may have no
    access to the model's files.

    Args:
        model: The model, on the CPU.
        pool: Sizes of the pool of actors and of the read tasks that feed it.
    """

    def __init__(self, model: TrainedModel, pool: ScoringPool) -> None:
        self._model = model
        self._weights = ray.put(model.model.state_dict())
        self._pool = pool

    def score(self, task: ScoringTask, first: int = 0) -> Iterator[ScoredUnit]:
        """Yield the scored units in order.

        Args:
            task: Samples to score.
            first: Number of the first scored unit.

        Raises:
            UserError: A shard is missing, has changed or cannot be read, or a batch does not fit into GPU memory.
            UnitOrderError: Ray changed the order of the units.
        """
        rows = self._rows(task, first)
        for unit in range(first, task.units):
            # The plan lists the views of the same samples one after the other.
            numbers = range(unit * task.views, (unit + 1) * task.views)
            views = [_next_row(rows, number) for number in numbers]
            yield _merge_views(task, views, task.plan.unit(numbers.start))
        if next(rows, None) is not None:
            raise UnitOrderError(f"got another unit after unit {task.plan.units - 1}, the last one")

    def dataset(self, task: ScoringTask, first: int = 0) -> Dataset:
        """Return the lazy Ray Dataset of the stream: one block with one row per unit, as returned by `_Scorer`.

        Args:
            task: Samples to score.
            first: Number of the first scored unit.
        """
        data = replace(self._model.config.data, tasks=self._pool.readers)
        inputs = self._model.inputs(task.source)
        maker = UnitMaker(task.source, inputs, task.index, task.plan, data, labelled=task.labelled)
        start, stop = first * task.views, task.plan.units
        name = task.source.name
        return unit_dataset({name: maker}, SingleUnits(name, start, stop), data).map_batches(
            _Scorer,
            fn_constructor_args=(
                self._model.stored,
                self._weights,
                self._pool.device,
                replace(task, index=SourceIndex([])),  # only read tasks need the index, which can be large
            ),
            # One row is one block of one unit. Without a batch size, Ray would fuse reading into the actors, where a
            # decoder that crashes would end the process that holds the model.
            batch_size=1,
            batch_format="pyarrow",
            # An actor without a unit would only load the model.
            compute=ActorPoolStrategy(size=min(self._pool.actors, stop - start)),
            num_cpus=self._pool.bundle.get("CPU"),
            num_gpus=self._pool.bundle.get("GPU"),
        )

    def _rows(self, task: ScoringTask, first: int) -> Iterator[Unit]:
        # A split into one runs the stream in an actor, which keeps Ray Data's log off this process's screen.
        [stream] = self.dataset(task, first).streaming_split(1)
        try:
            for block in stored_blocks(stream, self._model.config.data.prefetch_units):
                yield block.unit(0)
        except Exception as error:
            user_error = _find_user_error(error)
            if user_error is not None:
                # Without Ray's remote traceback: the message says what to do.
                raise UserError(str(user_error).splitlines()[0]) from None
            raise


class _Scorer:
    """Actor with a copy of the model: maps one unit to the model's outputs."""

    def __init__(
        self, stored: StoredModel, weights: "ray.ObjectRef[dict[str, Tensor]]", device: str, task: ScoringTask
    ) -> None:
        self._model = TrainedModel(stored, device, ray.get(weights))
        self._task = task

    @torch.no_grad()
    def __call__(self, block: pa.Table) -> pa.Table:
        stored = StoredBlock(block)
        unit = stored.unit(0)
        batch = to_batch(unit, self._model.device)
        task, logits, embeddings = self._task, [], []
        try:
            for subset in task.subsets:
                present = show_only(batch.present, subset)
                scores, latents = self._model.logits_and_latents(batch.arrays, present, task.source)
                logits.append(scores.cpu().numpy())
                embeddings.append(latents.mean(1).cpu().numpy() if task.embeddings else np.empty(0))
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"--batch is {task.batch}, which does not fit into GPU memory; lower it"
            ) from error
        kept = ("unit", "valid", "label", "keys", "quarantined")
        scored = {name: array for name, array in unit.items() if name in kept or name.endswith("_present")}
        scored |= {"logits": np.stack(logits), "embeddings": embeddings[0]}
        return block_of(stored.source, stored.units, [scored])


def _next_row(rows: Iterator[Unit], expected: int) -> Unit:
    """Return the next unit, which must have the expected number.

    Raises:
        UnitOrderError: The next unit has another number, or there is none.
    """
    row = next(rows, None)
    number = None if row is None else int(row["unit"][0])
    if row is None or number != expected:
        raise UnitOrderError(f"expected unit {expected}, got {'none' if row is None else f'unit {number}'}")
    return row


def _merge_views(task: ScoringTask, views: list[Unit], samples: Sequence[int]) -> ScoredUnit:
    """Merge all views of the same samples into one unit; a sample that is bad in one view is bad."""
    shards = [task.index.shards[task.index.locate(sample)[0]].shown_uri for sample in samples]
    keys = [str(key) for key in views[0]["keys"]]
    logits = torch.tensor(np.stack([row["logits"] for row in views]))  # (views, subsets, B, classes)
    embeddings = torch.tensor(np.stack([row["embeddings"] for row in views]))
    bad = {BadSample(*map(str, sample)) for row in views for sample in row["quarantined"]}
    return ScoredUnit(
        # A key is SHARD/KEY. There are more keys than samples where the unit is padded.
        locations=[
            SampleLocation(shard, key[len(shard) + 1 :]) for shard, key in zip(shards, keys, strict=False)
        ],
        # A window can be undecodable on its own: a row is valid only if all its views are.
        valid=torch.tensor(np.stack([row["valid"] for row in views])).all(0),
        labels=torch.tensor(views[0]["label"]),
        present={name: torch.tensor(views[0][f"{name}_present"]) for name in task.source.modalities},
        logits={
            subset: mean_logits(logits[:, row], task.source.task) for row, subset in enumerate(task.subsets)
        },
        embeddings=embeddings.mean(0) if task.embeddings else None,
        bad=sorted(bad),
    )


def _find_user_error(error: BaseException | None) -> UserError | None:
    """Return the `UserError` that caused an exception from Ray, or None."""
    while error is not None:
        cause = getattr(error, "cause", None)
        if isinstance(error, UserError) and cause is None:
            return error
        error = cause or error.__cause__
    return None
