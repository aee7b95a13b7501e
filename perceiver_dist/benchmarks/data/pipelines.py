"""Data pipelines under comparison, from shards to batches of tensors: this project, webdataset and Ray Data.

All use this project's decoders, except those named "own decoder", which decode pictures as the library's documentation
shows. Each shuffles as it is documented to:

- perceiver-dist: chunks of 4 samples among a whole epoch, then within each batch (pipelines/units/plan.py);
- webdataset: random shards, then a shuffle buffer of 1,000 encoded samples;
- ray.data: shards in random order, then a shuffle buffer of 1,000 decoded rows, or as many as 256 MiB hold.

"decoders alone" is no pipeline: processes decode samples that they hold in memory, and deliver nothing. No pipeline
with the same decoders can be faster on the same CPUs, which bounds every ratio.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from io import BytesIO
from itertools import cycle, islice
from typing import Any, cast

import numpy as np
import ray
import torch
import webdataset
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, IterableDataset, default_collate, get_worker_info

from perceiver_dist.benchmarks.data.data_sets import DataSet
from perceiver_dist.cluster.connect import QUIET, local_cpus
from perceiver_dist.data.batches import UnitStream
from perceiver_dist.modalities import ImageInput, ModalityInput
from pipelines.augment.randomness import evaluation_randomness
from pipelines.decode.sample import decode_sample
from pipelines.fields import FIELD_MODALITY
from pipelines.inspection.shard_access import index_shards
from pipelines.limits import DEFAULT_LIMITS
from pipelines.shards.sample_reader import RawSample
from pipelines.shards.source import DEFAULT_DATA
from pipelines.units.block_order import BlockOrder
from pipelines.units.block_size import units_per_block
from pipelines.units.plan import TrainingPlan
from pipelines.units.schedule import Schedule
from pipelines.units.unit_datasource import unit_dataset
from pipelines.units.unit_maker import UnitMaker

_BUFFER = 1000
"""Samples in a shuffle buffer, the size in webdataset's own examples."""
_HELD_BATCHES = 4
"""Batches that "decoders alone" holds: 6 MB of photographs, more than a core's cache, and read in a moment."""
_BUFFER_BYTES = 2**28
"""Max size of Ray Data's buffer, which holds decoded arrays: 1,000 clips would take 5 GB."""

Row = dict[str, np.ndarray]
"""A decoded sample: array by modality, and the label."""


def with_perceiver_dist(data_set: DataSet, cpus: int, batches: int, index_folder: str) -> Iterator[int]:
    """Read like a training run with one rank.

    Args:
        data_set: The data set to read.
        cpus: Cores; as in a run on one machine, there are some more read tasks.
        batches: Max number of batches.
        index_folder: Folder of the shard indexes.

    Yields:
        The number of samples of each batch, once it is loaded.
    """
    readers = local_cpus(cpus)
    _start_ray(readers)
    source, size = data_set.source, data_set.batch
    index = index_shards(data_set.shards, index_folder)
    plan = TrainingPlan(source.name, index.samples, size, DEFAULT_DATA.chunk_size, seed=0)
    maker = UnitMaker(source, data_set.inputs, index, plan)
    name, units = source.name, units_per_block(maker.unit_bytes, open_blocks=2)
    blocks = BlockOrder(Schedule({name: 1.0}), 1, 0, batches, {name: units})
    dataset = unit_dataset({name: maker}, blocks, replace(DEFAULT_DATA, tasks=readers))
    [part] = dataset.streaming_split(1, equal=True)
    stream = UnitStream(part, torch.device("cpu"), prefetch=-(-DEFAULT_DATA.prefetch_units // units))
    return (len(stream.take(name, number).labels) for number in range(batches))


def with_webdataset(
    data_set: DataSet,
    cpus: int,
    batches: int,
    index_folder: str,  # noqa: ARG001
    own_decoder: bool = False,
) -> Iterator[int]:
    """Read with webdataset in DataLoader workers.

    Args:
        data_set: The data set to read.
        cpus: DataLoader workers.
        batches: Max number of batches.
        index_folder: Not used.
        own_decoder: Whether webdataset decodes pictures.

    Yields:
        The number of samples of each batch, once it is loaded.
    """
    # Resampling shards with replacement gives an endless stream, which needs no equal shards per worker.
    pipeline = webdataset.WebDataset(data_set.shards, resampled=True, shardshuffle=False).shuffle(_BUFFER)
    if own_decoder:
        pipeline = pipeline.decode("pil").map(partial(row_from_picture, inputs=data_set.inputs))
    else:
        pipeline = pipeline.map(partial(row_from_bytes, inputs=data_set.inputs))
    pipeline = pipeline.batched(data_set.batch, collation_fn=default_collate)
    loader = webdataset.WebLoader(pipeline, batch_size=None, num_workers=cpus)
    return (len(batch["label"]) for batch, _ in zip(loader, range(batches), strict=False))


def with_ray_data(
    data_set: DataSet,
    cpus: int,
    batches: int,
    index_folder: str,
    own_decoder: bool = False,
) -> Iterator[int]:
    """Read with `ray.data.read_webdataset`, `map_batches` and `iter_torch_batches`, as documented.

    Args:
        data_set: The data set to read.
        cpus: CPUs of Ray.
        batches: Max number of batches.
        index_folder: Folder of the shard indexes, from which the number of samples in an epoch is known.
        own_decoder: Whether `read_webdataset` decodes pictures.

    Yields:
        The number of samples of each batch, once it is loaded.
    """
    _start_ray(cpus)
    ray.data.DataContext.get_current().enable_progress_bars = False
    shards = data_set.shards
    samples = index_shards(shards, index_folder).samples
    # read_webdataset reads a list of shards once, so the list holds as many epochs as the batches need.
    epochs = math.ceil(batches * data_set.batch / samples)
    row_bytes = sum(
        math.prod(spec.array_shape) * np.dtype(spec.array_dtype).itemsize for spec in data_set.inputs.values()
    )
    rows = ray.data.read_webdataset(
        shards * epochs, decoder=True if own_decoder else None, shuffle="files"
    ).map_batches(
        partial(
            _from_rows, decode=row_from_picture if own_decoder else row_from_bytes, inputs=data_set.inputs
        ),
        batch_size=data_set.batch,
    )
    loader = rows.iter_torch_batches(
        batch_size=data_set.batch,
        local_shuffle_buffer_size=max(data_set.batch, min(_BUFFER, _BUFFER_BYTES // row_bytes)),
    )
    return (len(batch["label"]) for batch, _ in zip(loader, range(batches), strict=False))


def decoders_alone(
    data_set: DataSet,
    cpus: int,
    batches: int,
    index_folder: str,  # noqa: ARG001
) -> Iterator[int]:
    """Decode samples from memory, without reading, shuffling, stacking or delivering them.

    Args:
        data_set: The data set, of which each process holds the first samples.
        cpus: Processes.
        batches: Max number of batches.
        index_folder: Not used.

    Yields:
        The number of samples of each batch, once it is decoded.
    """
    stream = _DecodedFromMemory(data_set, batches)
    return iter(DataLoader(stream, batch_size=None, num_workers=cpus))


class _DecodedFromMemory(IterableDataset[int]):
    """Sizes of batches, each once its samples are decoded; the same samples again and again."""

    def __init__(self, data_set: DataSet, batches: int) -> None:
        self._data_set = data_set
        self._batches = batches

    def __iter__(self) -> Iterator[int]:
        size = self._data_set.batch
        # Every worker reads the first shards; by default they would share them, and some get none.
        shards = webdataset.WebDataset(self._data_set.shards, shardshuffle=False, workersplitter=None)
        held = list(islice(shards, _HELD_BATCHES * size))
        # Workers get the batches in turn.
        worker = get_worker_info()
        samples = cycle(held)
        for _ in range(self._batches // (worker.num_workers if worker else 1)):
            for sample in islice(samples, size):
                row_from_bytes(sample, self._data_set.inputs)
            yield size


def _start_ray(cpus: int) -> None:
    if not ray.is_initialized():
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **QUIET)


def row_from_bytes(sample: Mapping[str, Any], inputs: Mapping[str, ModalityInput]) -> Row:
    """Decode an encoded sample with this project's decoders.

    Args:
        sample: Encoded files by field name, "cls", and "__key__".
        inputs: Decoded form of each modality.
    """
    fields = {name: data for name, data in sample.items() if name in FIELD_MODALITY}
    raw = RawSample("", str(sample["__key__"]), fields)
    arrays = decode_sample(raw, inputs, evaluation_randomness(raw.key), DEFAULT_LIMITS)
    return {**arrays, "label": np.array(int(sample["cls"]))}


def row_from_picture(sample: Mapping[str, Any], inputs: Mapping[str, ModalityInput]) -> Row:
    """Resize and crop a picture that a library has decoded.

    Args:
        sample: "cls", and under the field name the picture: of Pillow, as array (height, width[, channels]), or bytes.
        inputs: Decoded form of the image.
    """
    spec = cast(ImageInput, inputs["image"])
    name = next(name for name in sample if name in FIELD_MODALITY)
    picture = sample[name]
    if not isinstance(picture, Image.Image):
        picture = Image.open(BytesIO(picture)) if isinstance(picture, bytes) else Image.fromarray(picture)
    picture = ImageOps.fit(picture.convert("RGB"), (spec.width, spec.height), Image.Resampling.BICUBIC)
    return {"image": np.asarray(picture), "label": np.array(int(sample["cls"]))}


def _from_rows(
    columns: Mapping[str, Any], decode: Callable[..., Row], inputs: Mapping[str, ModalityInput]
) -> dict[str, np.ndarray]:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    decoded = [decode(row, inputs) for row in rows]
    return {name: np.stack([row[name] for row in decoded]) for name in decoded[0]}


Pipeline = Callable[[DataSet, int, int, str], Iterator[int]]

PIPELINES: dict[str, Pipeline] = {
    "decoders alone": decoders_alone,
    "perceiver-dist": with_perceiver_dist,
    "webdataset": with_webdataset,
    "ray.data": with_ray_data,
    "webdataset, own decoder": partial(with_webdataset, own_decoder=True),
    "ray.data, own decoder": partial(with_ray_data, own_decoder=True),
}
"""Pipelines by name; those named "own decoder" are for pictures only."""
