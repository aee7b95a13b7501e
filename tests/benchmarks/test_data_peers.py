"""Data pipelines with formats of their own: full batches, the same samples, and what is said where one is missing."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from perceiver_dist.benchmarks.data import data_sets
from perceiver_dist.benchmarks.data.data_sets import DataSet
from perceiver_dist.benchmarks.data.peers import PEERS, missing_library, row_from_tensor
from perceiver_dist.benchmarks.data.pipelines import PIPELINES, row_from_picture
from perceiver_dist.modalities import ImageInput

needs_streaming = pytest.mark.skipif(
    importlib.util.find_spec("streaming") is None,
    reason="mosaicml-streaming is not installed; make test-peers installs it",
)
needs_litdata = pytest.mark.skipif(
    importlib.util.find_spec("litdata") is None,
    reason="litdata is not installed; make test-peers installs it",
)


@pytest.mark.parametrize("name", list(data_sets.DATA_SETS))
@pytest.mark.parametrize("pipeline", list(PEERS))
def test_peers_yield_full_batches_beyond_the_end_of_every_set(
    small_sets: dict[str, DataSet], name: str, pipeline: str, tmp_path: Path
) -> None:
    if missing := missing_library(pipeline):
        pytest.skip(f"{missing} is not installed; make test-peers installs it")
    if "own decoder" in pipeline and list(small_sets[name].inputs) != ["image"]:
        pytest.skip("a library's own decoder is measured with pictures only")
    for _ in range(2):  # The second time, the copy of the data set is there.
        assert list(PEERS[pipeline](small_sets[name], 2, 6, str(tmp_path / "index"))) == [4] * 6


def test_a_missing_library_is_named_and_others_are_not() -> None:
    for pipeline in PIPELINES:
        assert missing_library(pipeline) is None
    for pipeline, module in {"litdata, own decoder": "litdata", "mosaicml-streaming": "streaming"}.items():
        installed = importlib.util.find_spec(module) is not None
        assert missing_library(pipeline) == (None if installed else pipeline.partition(",")[0])


def _encoded(data_set: DataSet) -> dict[str, bytes]:
    return {
        sample["__key__"]: sample["jpg"]
        for sample in webdataset.WebDataset(data_set.shards, shardshuffle=False)
    }


@needs_streaming
def test_mds_shards_hold_the_same_files(small_sets: dict[str, DataSet], tmp_path: Path) -> None:
    library: Any = importlib.import_module("streaming")
    photographs = small_sets["photographs"]
    for pipeline, folder in (
        ("mosaicml-streaming", "mds-photographs"),
        ("mosaicml-streaming, own decoder", "mds-photographs-pictures"),
    ):
        next(PEERS[pipeline](photographs, 1, 1, str(tmp_path)))
        samples = library.LocalDataset(str(tmp_path / folder))
        # A picture is a JPEG that was opened from the stored bytes.
        stored = {
            one["__key__"]: one["jpg"] if isinstance(one["jpg"], bytes) else one["jpg"].fp.getvalue()
            for one in samples
        }
        assert stored == _encoded(photographs)


@needs_litdata
def test_litdata_chunks_hold_the_same_files(small_sets: dict[str, DataSet], tmp_path: Path) -> None:
    library: Any = importlib.import_module("litdata")
    photographs = small_sets["photographs"]
    next(PEERS["litdata"](photographs, 1, 1, str(tmp_path)))
    samples = library.StreamingDataset(str(tmp_path / "litdata-photographs"))
    assert {sample["__key__"]: sample["jpg"] for sample in samples} == _encoded(photographs)


@needs_litdata
@pytest.mark.parametrize("size", [(375, 500), (500, 375), (224, 224)])
def test_a_decoded_tensor_is_cropped_like_a_picture(size: tuple[int, int]) -> None:
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed; make test-peers installs it")
    inputs = {"image": ImageInput(height=224, width=224)}
    # A ramp in both directions: a rectangle that is one pixel off differs by more than rounding.
    rows, columns = np.mgrid[: size[0], : size[1]]
    pixels = np.stack([rows // 2, columns // 2, (rows + columns) // 4], axis=-1).astype(np.uint8)
    picture = row_from_picture({"jpg": Image.fromarray(pixels), "cls": 3}, inputs)
    tensor = row_from_tensor({"image": torch.from_numpy(pixels).permute(2, 0, 1), "cls": 3}, inputs)
    assert int(tensor["label"]) == int(picture["label"]) == 3
    difference = tensor["image"].permute(1, 2, 0).numpy().astype(int) - picture["image"]
    assert abs(difference).max() <= 1
