"""Samples of loose files: a file, or several of different modalities that belong together."""

from collections.abc import Sequence
from pathlib import Path

from perceiver_dist.errors import UserError
from pipelines.decode import FIELD_MODALITY, field_of
from pipelines.shards.sample_reader import RawSample

Files = str | Path | Sequence[str | Path]
"""A sample: one file, or several that belong together, such as a picture and a sound."""


def read_files(files: Files) -> RawSample:
    """Read the files of one sample.

    Args:
        files: One file, or several of different modalities.

    Raises:
        UserError: A file is missing or of unknown kind, or two are of one modality.
    """
    paths = [Path(file) for file in ([files] if isinstance(files, str | Path) else files)]
    _check_kinds(paths)
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    return sample_of([(str(path), path.read_bytes()) for path in paths])


def sample_of(files: Sequence[tuple[str, bytes]]) -> RawSample:
    """Return the sample that files make whose bytes are there already.

    Args:
        files: Name and bytes of one file, or of several of different modalities.

    Raises:
        UserError: A file is of unknown kind, or two are of one modality.
    """
    paths = [Path(name) for name, _ in files]
    _check_kinds(paths)
    contents = zip(paths, files, strict=True)
    return RawSample(files[0][0], paths[0].stem, {field_of(path): content for path, (_, content) in contents})


def _check_kinds(paths: Sequence[Path]) -> None:
    """Make sure that files can be one sample.

    Raises:
        UserError: One is of unknown kind, or two are of one modality.
    """
    for path in paths:
        if field_of(path) not in FIELD_MODALITY:
            raise UserError(f"{path}: no kind of file known here; known are {', '.join(FIELD_MODALITY)}")
    if len({FIELD_MODALITY[field_of(path)] for path in paths}) < len(paths):
        raise UserError(f"{', '.join(map(str, paths))}: two files of one modality; they are no single sample")
