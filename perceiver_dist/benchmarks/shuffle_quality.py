"""How well samples are mixed, beside the shuffle of webdataset: shards in random order, then a buffer.

Samples are only numbered here, and their classes stand one after another, as shards made of folders have them: what a
shuffle does not mix is then seen in the batches. Three figures:

- apart: the median distance, in positions, at which neighbours in a shard are delivered;
- together: the share of neighbours that are delivered in one batch;
- imbalance: how far the classes of a batch are from those of all samples: half the sum of the differences between
  their shares, 0 if they are the same and near 1 if a batch is of one class, and the mean of that over batches; its
  ratio is to that of samples in wholly random order.
"""

import random
from collections.abc import Iterable, Iterator

import numpy as np
from webdataset import filters

from perceiver_dist.benchmarks.result_table import ResultTable
from perceiver_dist.errors import UserError
from pipelines.units.plan import TrainingPlan

_BUFFERS = (1_000, 10_000)
_CHUNKS = (1, 4, 16)


def measure_shuffle(
    samples: int = 200_000, shards: int = 200, classes: int = 100, batch: int = 256
) -> ResultTable:
    """Measure how well samples are mixed, beside webdataset's shuffle of shards and buffers.

    Args:
        samples: Of one epoch.
        shards: In which they lie, in order of their classes.
        classes: Of as many samples each.
        batch: Samples of a step.

    Raises:
        UserError: An option is not as it must be.
    """
    if shards < 1 or classes < 2 or batch < 1 or samples < max(shards, classes, batch):
        raise UserError(
            "--shards and --batch must be at least 1, --classes 2, and --samples as many as any of them"
        )
    orders = {"wholly random": np.random.default_rng(0).permutation(samples)}
    for chunk in _CHUNKS:
        orders[f"perceiver-dist, data.chunk_size {chunk}"] = _planned(samples, batch, chunk)
    for buffer in _BUFFERS:
        orders[f"webdataset, buffer of {buffer:,}"] = _buffered(samples, shards, buffer)
    labels = np.arange(samples) * classes // samples
    best = next(iter(orders.values()))
    rows = []
    for name, order in orders.items():
        position = np.empty(samples, np.int64)
        position[order] = np.arange(samples)
        apart = np.median(np.abs(np.diff(position)))
        together = np.mean(np.diff(position // batch) == 0)
        imbalance = _imbalance(labels[order], classes, batch)
        rows.append(
            [
                name,
                f"{apart:,.0f}",
                f"{together:.2%}",
                f"{imbalance:.3f}",
                f"{imbalance / _imbalance(labels[best], classes, batch):.2f}",
            ]
        )
    return ResultTable(("order", "apart", "together", "imbalance", "ratio"), rows)


def _planned(samples: int, batch: int, chunk: int) -> np.ndarray:
    """The first epoch of this project's plan."""
    plan = TrainingPlan("source", samples, batch, chunk, seed=0)
    units = (plan.unit(number) for number in range(samples // batch))
    rest = [plan.sample_at(position) for position in range(samples // batch * batch, samples)]
    return np.array([*(sample for unit in units for sample in unit), *rest])


def _buffered(samples: int, shards: int, buffer: int) -> np.ndarray:
    """Shards in random order, samples through webdataset's own buffer."""
    order = np.random.default_rng(0).permutation(shards)
    pieces = np.array_split(np.arange(samples), shards)
    stream: Iterator[int] = (int(sample) for shard in order for sample in pieces[shard])
    mix: Iterable[int] = filters._shuffle(stream, bufsize=buffer, initial=buffer, rng=random.Random(0))  # noqa: S311
    return np.array(list(mix))


def _imbalance(labels: np.ndarray, classes: int, batch: int) -> float:
    """Mean over batches of half the sum of differences between shares of classes."""
    whole = np.bincount(labels, minlength=classes) / len(labels)
    batches = labels[: len(labels) // batch * batch].reshape(-1, batch)
    shares = [np.bincount(one, minlength=classes) / batch for one in batches]
    return float(np.mean([np.abs(share - whole).sum() / 2 for share in shares]))
