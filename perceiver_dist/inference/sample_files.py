"""Samples made of loose files: one file, or several of different modalities."""

from collections.abc import Sequence
from pathlib import Path

from perceiver_dist.errors import UserError
from pipelines.fields import FIELD_MODALITY, field_of
from pipelines.shards.sample_reader import RawSample

SampleFiles = str | Path | Sequence[str | Path]
"""Files of one sample: a single file, or several such as an image and a sound."""


def read_files(files: SampleFiles) -> RawSample:
    """Read the files of one sample.

    Args:
        files: One file, or several of different modalities.

    Raises:
        UserError: A file is missing or of an unsupported type, or two files have the same modality.
    """
    paths = [Path(file) for file in ([files] if isinstance(files, str | Path) else files)]
    _check_types(paths)
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    return sample_from_bytes([(str(path), path.read_bytes()) for path in paths])


def sample_from_bytes(files: Sequence[tuple[str, bytes]]) -> RawSample:
    """Return the sample that consists of some files in memory.

    Args:
        files: Name and bytes of one file, or of several of different modalities.

    Raises:
        UserError: A file is of an unsupported type, or two files have the same modality.
    """
    paths = [Path(name) for name, _ in files]
    _check_types(paths)
    contents = zip(paths, files, strict=True)
    # The name of the first file takes the place of a shard, which errors and predictions name.
    return RawSample(files[0][0], paths[0].stem, {field_of(path): content for path, (_, content) in contents})


def _check_types(paths: Sequence[Path]) -> None:
    """Check that files can form one sample.

    Raises:
        UserError: A file is of an unsupported type, or two files have the same modality.
    """
    for path in paths:
        if field_of(path) not in FIELD_MODALITY:
            raise UserError(f"{path}: unsupported file type; supported are {', '.join(FIELD_MODALITY)}")
    if len({FIELD_MODALITY[field_of(path)] for path in paths}) < len(paths):
        raise UserError(
            f"{', '.join(map(str, paths))}: two files of the same modality; a sample has at most one file per modality"
        )
