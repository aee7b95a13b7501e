"""Ways from shards to batches of tensors: this project's, and those that others would be built of.

All decode with the same functions, unless a way's name says "own decoder": then with what the library's
documentation shows for pictures. Each shuffles as it is documented to:

- perceiver-dist: chunks of 4 samples among all of an epoch, and each batch in itself (pipelines/units/plan.py);
- webdataset: shards are drawn at random, and samples pass a buffer of 1,000, still encoded;
- ray.data: shards in random order, and rows pass a buffer of 1,000 decoded ones, or as many as 256 MiB hold.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from io import BytesIO
from typing import Any, cast

import numpy as np
import ray
import torch
import webdataset
from PIL import Image, ImageOps
from torch.utils.data import default_collate

from perceiver_dist.benchmarks.data_sets import DataSet
from perceiver_dist.cluster.connect import QUIET
from perceiver_dist.data.batches import UnitStream
from perceiver_dist.modalities import ImageInput, ModalityInput
from pipelines.augment.randomness import evaluation_randomness
from pipelines.decode import FIELD_MODALITY
from pipelines.decode.sample import decode_sample
from pipelines.inspection.shard_access import index_shards
from pipelines.limits import DEFAULT_LIMITS
from pipelines.shards.sample_reader import RawSample
from pipelines.shards.source import DEFAULT_DATA
from pipelines.units.plan import TrainingPlan
from pipelines.units.unit_datasource import unit_dataset
from pipelines.units.unit_maker import UnitMaker

_BUFFER = 1000
_BUFFER_BYTES = 2**28

Row = dict[str, np.ndarray]
"""A sample: modality -> array, and its label."""


def ours(data_set: DataSet, cpus: int, batches: int, index_folder: str) -> Iterator[int]:
    """Read as a training of one rank does.

    Args:
        data_set: What to read.
        cpus: Read tasks at a time.
        batches: How many will be asked for, at most.
        index_folder: Where indexes of shards are kept.

    Yields:
        The samples of a batch that is there.
    """
    _start_ray(cpus)
    source, size = data_set.source, data_set.batch
    index = index_shards(data_set.shards, index_folder)
    plan = TrainingPlan(source.name, index.samples, size, DEFAULT_DATA.chunk_size, seed=0)
    maker = UnitMaker(source, data_set.inputs, index, plan)
    [part] = unit_dataset(maker, 0, batches, replace(DEFAULT_DATA, tasks=cpus)).streaming_split(1, equal=True)
    stream = UnitStream(part, source.name, torch.device("cpu"), DEFAULT_DATA.prefetch_units)
    return (len(stream.take(number).labels) for number in range(batches))


def with_webdataset(
    data_set: DataSet,
    cpus: int,
    batches: int,
    index_folder: str,  # noqa: ARG001
    own_decoder: bool = False,
) -> Iterator[int]:
    """Read with webdataset in the workers of a DataLoader.

    Args:
        data_set: What to read.
        cpus: Workers.
        batches: How many will be asked for, at most.
        index_folder: Not needed.
        own_decoder: Whether pictures are decoded by webdataset.

    Yields:
        The samples of a batch that is there.
    """
    pipeline = webdataset.WebDataset(data_set.shards, resampled=True, shardshuffle=False).shuffle(_BUFFER)
    if own_decoder:
        pipeline = pipeline.decode("pil").map(partial(_from_picture, inputs=data_set.inputs))
    else:
        pipeline = pipeline.map(partial(_from_bytes, inputs=data_set.inputs))
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
    """Read with `ray.data.read_webdataset`, and what is documented to follow it.

    Args:
        data_set: What to read.
        cpus: CPUs of Ray.
        batches: How many will be asked for, at most.
        index_folder: Not needed.
        own_decoder: Whether pictures are decoded by `read_webdataset`.

    Yields:
        The samples of a batch that is there.
    """
    _start_ray(cpus)
    ray.data.DataContext.get_current().enable_progress_bars = False
    shards = data_set.shards
    samples = index_shards(shards, index_folder).samples
    epochs = math.ceil(batches * data_set.batch / samples)
    row_bytes = sum(
        math.prod(spec.array_shape) * np.dtype(spec.array_dtype).itemsize for spec in data_set.inputs.values()
    )
    rows = ray.data.read_webdataset(
        shards * epochs, decoder=True if own_decoder else None, shuffle="files"
    ).map_batches(
        partial(_from_rows, decode=_from_picture if own_decoder else _from_bytes, inputs=data_set.inputs),
        batch_size=data_set.batch,
    )
    loader = rows.iter_torch_batches(
        batch_size=data_set.batch,
        local_shuffle_buffer_size=max(data_set.batch, min(_BUFFER, _BUFFER_BYTES // row_bytes)),
    )
    return (len(batch["label"]) for batch, _ in zip(loader, range(batches), strict=False))


def _start_ray(cpus: int) -> None:
    if not ray.is_initialized():
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **QUIET)


def _from_bytes(sample: Mapping[str, Any], inputs: Mapping[str, ModalityInput]) -> Row:
    """Decode with this project's functions."""
    fields = {name: data for name, data in sample.items() if name in FIELD_MODALITY}
    raw = RawSample("", str(sample["__key__"]), fields)
    arrays = decode_sample(raw, inputs, evaluation_randomness(raw.key), DEFAULT_LIMITS)
    return {**arrays, "label": np.array(int(sample["cls"]))}


def _from_picture(sample: Mapping[str, Any], inputs: Mapping[str, ModalityInput]) -> Row:
    """Fit a picture that a library has decoded."""
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
    "perceiver-dist": ours,
    "webdataset": with_webdataset,
    "ray.data": with_ray_data,
    "webdataset, own decoder": partial(with_webdataset, own_decoder=True),
    "ray.data, own decoder": partial(with_ray_data, own_decoder=True),
}
"""Functions by name; the last two for pictures only."""
