"""Benchmark of shuffle quality, against webdataset: shards in random order, then a shuffle buffer.

Samples are numbers here. Their classes are in order, as in shards made from one folder per class, so whatever a shuffle
does not mix shows in the batches. Three metrics:

- distance: median distance between the positions at which neighbours in a shard are delivered;
- same batch: fraction of neighbours that are delivered in the same batch;
- imbalance: total variation distance between the classes of a batch and those of all samples (half the sum of absolute
  differences of class frequencies; 0 if equal, near 1 if a batch has one class), averaged over batches. Its ratio is to
  that of a uniformly random order.
"""

import random
from collections.abc import Iterable, Iterator

import numpy as np
from webdataset import filters

from perceiver_dist.benchmarks.result_table import ResultTable
from perceiver_dist.errors import UserError
from pipelines.units.plan import TrainingPlan

_BUFFERS = (1_000, 10_000)
"""Sizes of webdataset's buffer: the usual one, and ten times that, about 1 GB of ImageNet's files per worker."""
_CHUNKS = (1, 4, 16)
"""Values of data.chunk_size: the uniform shuffle, the default, and one that saves requests (docs/scaling.md)."""


def measure_shuffle(
    samples: int = 200_000, shards: int = 200, classes: int = 100, batch: int = 256
) -> ResultTable:
    """Measure how well samples are shuffled, against webdataset's shuffle of shards and buffer.

    Args:
        samples: Samples of an epoch.
        shards: Number of shards, which hold the samples in order of their classes.
        classes: Number of classes, of equal size.
        batch: Samples of a step.

    Raises:
        UserError: An option is out of range.
    """
    if shards < 1 or classes < 2 or batch < 1 or samples < max(shards, classes, batch):
        raise UserError(
            f"--samples {samples}, --shards {shards}, --classes {classes}, --batch {batch}: --shards and --batch must "
            "be at least 1, --classes at least 2, and --samples at least as large as each of them"
        )
    orders = {"uniformly random": np.random.default_rng(0).permutation(samples)}
    for chunk in _CHUNKS:
        orders[f"perceiver-dist, data.chunk_size {chunk}"] = _planned(samples, batch, chunk)
    for buffer in _BUFFERS:
        orders[f"webdataset, buffer of {buffer:,}"] = _buffered(samples, shards, buffer)
    labels = np.arange(samples) * classes // samples
    uniform = next(iter(orders.values()))
    rows = []
    for name, order in orders.items():
        position = np.empty(samples, np.int64)
        position[order] = np.arange(samples)
        distance = np.median(np.abs(np.diff(position)))
        same_batch = np.mean(np.diff(position // batch) == 0)
        imbalance = _imbalance(labels[order], classes, batch)
        rows.append(
            [
                name,
                f"{distance:,.0f}",
                f"{same_batch:.2%}",
                f"{imbalance:.3f}",
                f"{imbalance / _imbalance(labels[uniform], classes, batch):.2f}",
            ]
        )
    return ResultTable(("order", "distance", "same batch", "imbalance", "ratio"), rows)


def _planned(samples: int, batch: int, chunk: int) -> np.ndarray:
    """Return the first epoch in the order of this project's plan."""
    plan = TrainingPlan("source", samples, batch, chunk, seed=0)
    units = (plan.unit(number) for number in range(samples // batch))
    rest = [plan.sample_at(position) for position in range(samples // batch * batch, samples)]
    return np.array([*(sample for unit in units for sample in unit), *rest])


def _buffered(samples: int, shards: int, buffer: int) -> np.ndarray:
    """Return an epoch with shards in random order and samples shuffled by webdataset's own buffer."""
    order = np.random.default_rng(0).permutation(shards)
    pieces = np.array_split(np.arange(samples), shards)
    stream: Iterator[int] = (int(sample) for shard in order for sample in pieces[shard])
    mix: Iterable[int] = filters._shuffle(stream, bufsize=buffer, initial=buffer, rng=random.Random(0))  # noqa: S311
    return np.array(list(mix))


def _imbalance(labels: np.ndarray, classes: int, batch: int) -> float:
    """Return the mean total variation distance between the classes of a batch and those of all samples."""
    overall = np.bincount(labels, minlength=classes) / len(labels)
    batches = labels[: len(labels) // batch * batch].reshape(-1, batch)
    frequencies = [np.bincount(one, minlength=classes) / batch for one in batches]
    return float(np.mean([np.abs(frequency - overall).sum() / 2 for frequency in frequencies]))
