"""Classes of samples from the index of their shards: those that reading each label gives."""

from pathlib import Path

import numpy as np
import pytest
from tar_files import index_of, write_tar

from pipelines.decode.sample import read_label
from pipelines.errors import SampleError, ShardError
from pipelines.shards.sample_reader import read_samples
from pipelines.shards.shard_index import SourceIndex
from pipelines.shards.source import DEFAULT_DATA, SourceConfig
from pipelines.units.class_numbers import class_numbers

LABELS = ["0", "1\n", "2", " 1", "1.0", "11", "11\n", "12", "-1", "", "bird", "3, 4", None, "0", "0\r\n"]
SOURCE = SourceConfig("birds", "x.tar", ["image"], num_classes=12)


def shards(folder: Path, labels: list[str | None]) -> SourceIndex:
    """Index two shards with a sample for each label, of which None is a sample without one."""
    members = []
    for number, label in enumerate(labels):
        fields = {"jpg": b"picture"} if label is None else {"jpg": b"picture", "cls": label.encode()}
        members.append([(f"{number:04d}.{field}", content) for field, content in fields.items()])
    half = len(labels) // 2
    return index_of(
        *(
            write_tar(folder / f"{part}.tar", [member for sample in samples for member in sample])
            for part, samples in enumerate((members[:half], members[half:]))
        )
    )


def class_of(index: SourceIndex, sample: int) -> int:
    [read] = read_samples(index, [sample], frozenset({"cls"}))
    try:
        return int(read_label(read, SOURCE))
    except SampleError:
        return -1


def test_the_classes_are_those_of_the_labels(tmp_path: Path) -> None:
    index = shards(tmp_path, LABELS)
    found = class_numbers(index, SOURCE, DEFAULT_DATA)
    assert found.tolist() == [class_of(index, sample) for sample in range(len(LABELS))]
    assert found.tolist() == [0, 1, 2, 1, 1, 11, 11, -1, -1, -1, -1, -1, -1, 0, 0]


def test_plain_labels_are_not_read(tmp_path: Path) -> None:
    index = shards(tmp_path, ["3", "4\n", None, "11"])
    for shard in index.shards:
        Path(shard.uri).unlink()
    assert class_numbers(index, SOURCE, DEFAULT_DATA).tolist() == [3, 4, -1, 11]


def test_a_label_that_differs_in_every_sample_is_refused(tmp_path: Path) -> None:
    index = shards(tmp_path, [f"{number % 12}{' ' * number}" for number in range(150)])
    with pytest.raises(
        ShardError, match=r"balance needs a label that is a class number alone, but 'cls' has 150 "
    ):
        class_numbers(index, SOURCE, DEFAULT_DATA)


def test_many_samples_of_few_classes(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 12, 300)
    index = shards(tmp_path, [str(label) for label in labels])
    assert class_numbers(index, SOURCE, DEFAULT_DATA).tolist() == labels.tolist()
