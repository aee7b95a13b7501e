"""Pipelines with formats of their own, for `jobs/benchmark.py data`; `make benchmark-data` installs them.

Both shuffle deterministically, as this project does, and can resume inside an epoch:

- mosaicml-streaming: shards in random order, then all samples of a block of 262,144 (`py1e`, its default);
- litdata: chunks in random order, then blocks of 256 samples within each, its default.

The same samples are written to their formats the first time, before anything is measured. They are read from the local
disk in one endless epoch, because a data set of this benchmark is so short that workers would mostly drain and refill.
"""

import importlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
import webdataset
from PIL import Image
from torch import Tensor

from perceiver_dist.benchmarks.data.data_sets import DataSet
from perceiver_dist.benchmarks.data.pipelines import Pipeline, Row, row_from_bytes, row_from_picture
from perceiver_dist.modalities import ImageInput, ModalityInput
from pipelines.fields import FIELD_MODALITY

_MDS_ENCODINGS = {"jpg": "jpeg", "png": "png"}
"""Encodings of mosaicml-streaming that decode pictures, by field name."""
_MODULES = {"mosaicml-streaming": "streaming", "litdata": "litdata"}
"""Python module by library."""
_LITDATA_CHUNK = "64MB"
"""The size that litdata's documentation uses."""


def missing_library(pipeline: str) -> str | None:
    """Return the library that a pipeline needs and that is not installed, or None.

    Args:
        pipeline: Name of any pipeline.
    """
    library = pipeline.partition(",")[0]
    missing = library in _MODULES and importlib.util.find_spec(_MODULES[library]) is None
    return library if missing else None


def with_mosaicml_streaming(
    data_set: DataSet, cpus: int, batches: int, folder: str, own_decoder: bool = False
) -> Iterator[int]:
    """Read with mosaicml-streaming's `StreamingDataset` and `StreamingDataLoader`, from MDS shards.

    Args:
        data_set: The data set to read.
        cpus: DataLoader workers.
        batches: Max number of batches.
        folder: Folder of the MDS shards, which are written the first time.
        own_decoder: Whether the library decodes pictures.

    Yields:
        The number of samples of each batch, once it is loaded.

    Raises:
        ImportError: mosaicml-streaming is not installed.
    """
    library: Any = importlib.import_module("streaming")
    decode = partial(row_from_picture if own_decoder else row_from_bytes, inputs=data_set.inputs)

    class Decoded(library.StreamingDataset):  # type: ignore[misc] # the library has no types
        def __getitem__(self, at: int) -> Row:
            return decode(super().__getitem__(at))

    place = _written(folder, "mds", data_set, own_decoder, _write_mds)
    dataset = Decoded(
        local=str(place), shuffle=True, batch_size=data_set.batch, epoch_size=batches * data_set.batch
    )
    loader = library.StreamingDataLoader(dataset, batch_size=data_set.batch, num_workers=cpus)
    return (len(batch["label"]) for batch in loader)


def with_litdata(
    data_set: DataSet, cpus: int, batches: int, folder: str, own_decoder: bool = False
) -> Iterator[int]:
    """Read with litdata's `StreamingDataset` and `StreamingDataLoader`, from its chunks.

    Args:
        data_set: The data set to read.
        cpus: DataLoader workers.
        batches: Max number of batches.
        folder: Folder of the chunks, which are written the first time.
        own_decoder: Whether the library decodes pictures, to tensors with the channels first.

    Yields:
        The number of samples of each batch, once it is loaded.

    Raises:
        ImportError: litdata is not installed.
    """
    library: Any = importlib.import_module("litdata")
    decode = row_from_tensor if own_decoder else row_from_bytes
    place = _written(folder, "litdata", data_set, own_decoder, _write_litdata)
    dataset = library.StreamingDataset(
        str(place), shuffle=True, transform=partial(decode, inputs=data_set.inputs)
    )
    # litdata's way to make an epoch longer than its data; a sample is then a tuple of one row.
    cycled = library.ParallelStreamingDataset([dataset], length=batches * data_set.batch)
    loader = library.StreamingDataLoader(cycled, batch_size=data_set.batch, num_workers=cpus)
    return (len(batch["label"]) for [batch] in loader)


def row_from_tensor(sample: Mapping[str, Any], inputs: Mapping[str, ModalityInput]) -> dict[str, Tensor]:
    """Crop and resize a picture that litdata has decoded, the same rectangle as `row_from_picture`.

    Args:
        sample: "image" (3, height, width) uint8, and "cls".
        inputs: Decoded form of the image.

    Returns:
        "image" (3, height, width) uint8, and "label".

    Raises:
        ImportError: torchvision, with which litdata decodes, is not installed.
    """
    transforms: Any = importlib.import_module("torchvision.transforms.v2.functional")
    spec, image = cast(ImageInput, inputs["image"]), sample["image"]
    high, wide = image.shape[-2:]
    height, width = min(high, wide * spec.height // spec.width), min(wide, high * spec.width // spec.height)
    resized = transforms.resized_crop(
        image,
        *((high - height) // 2, (wide - width) // 2, height, width),
        size=[spec.height, spec.width],
        interpolation=transforms.InterpolationMode.BICUBIC,
        antialias=True,
    )
    return {"image": resized, "label": torch.tensor(int(sample["cls"]))}


def _written(
    folder: str,
    name: str,
    data_set: DataSet,
    own_decoder: bool,
    write: Callable[[list[str], Path, bool], None],
) -> Path:
    """Return the folder of a data set in another format; writes it if it is not complete."""
    place = Path(folder) / f"{name}-{data_set.source.name}{'-pictures' if own_decoder else ''}"
    # Both libraries write this file last.
    if not (place / "index.json").is_file():
        shutil.rmtree(place, ignore_errors=True)
        write(data_set.shards, place, own_decoder)
    return place


def _write_mds(shards: list[str], place: Path, own_decoder: bool) -> None:
    library: Any = importlib.import_module("streaming")
    samples = _samples(shards)
    first = next(samples)
    field = _field(first)
    columns = {"__key__": "str", field: _MDS_ENCODINGS[field] if own_decoder else "bytes", "cls": "int"}
    with TemporaryDirectory() as scratch, library.MDSWriter(out=str(place), columns=columns) as writer:
        for sample in (first, *samples):
            data: Any = sample[field]
            if own_decoder:
                # A JPEG is stored as it is only if it comes from a file; otherwise it is encoded again.
                file = Path(scratch) / f"picture.{field}"
                file.write_bytes(data)
                data = Image.open(file)
            writer.write({"__key__": sample["__key__"], field: data, "cls": int(sample["cls"])})


def _write_litdata(shards: list[str], place: Path, own_decoder: bool) -> None:
    library: Any = importlib.import_module("litdata")
    library.optimize(
        fn=partial(_litdata_samples, own_decoder=own_decoder),
        inputs=shards,
        output_dir=str(place),
        chunk_bytes=_LITDATA_CHUNK,
        num_workers=1,
        # By default spawn, which would remain the start method of this process's loaders as well.
        start_method="fork",
        verbose=False,
    )


def _litdata_samples(shard: str, own_decoder: bool) -> Iterator[dict[str, Any]]:
    library: Any = importlib.import_module("litdata")
    for sample in _samples([shard]):
        field, label = _field(sample), int(sample["cls"])
        if own_decoder:
            yield {"image": library.Image(bytes=sample[field]), "cls": label}
        else:
            yield {"__key__": sample["__key__"], field: sample[field], "cls": label}


def _samples(shards: list[str]) -> Iterator[Mapping[str, Any]]:
    """Yield encoded samples in the order of the shards."""
    return iter(webdataset.WebDataset(shards, shardshuffle=False))


def _field(sample: Mapping[str, Any]) -> str:
    return next(name for name in sample if name in FIELD_MODALITY)


PEERS: dict[str, Pipeline] = {
    "mosaicml-streaming": with_mosaicml_streaming,
    "litdata": with_litdata,
    "mosaicml-streaming, own decoder": partial(with_mosaicml_streaming, own_decoder=True),
    "litdata, own decoder": partial(with_litdata, own_decoder=True),
}
"""Pipelines by name, which begins with the library; the last two are for pictures only."""
