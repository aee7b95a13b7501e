"""A CSV file that lists files with their labels."""

from csv import DictReader
from pathlib import Path

from perceiver_dist.errors import UserError
from pipelines.convert.listed_files import SPLITS, ListedFile, check_files, extension, write_files
from pipelines.decode import FIELD_MODALITY
from pipelines.source import SourceConfig


def convert_manifest(csv: Path, out: Path, samples_per_shard: int = 1000, seed: int = 0) -> SourceConfig:
    """Write the files that a CSV manifest lists to shards.

    Args:
        csv: A CSV file with the columns path, relative to the manifest, and label, any text; a third one,
            split, may say train or eval (also validation, val, test). Without it all files are for training.
        out: Directory to write to; its name becomes the source's.
        samples_per_shard: Samples in every shard but the last of a split.
        seed: Decides the order of the samples.

    Returns:
        The source. Its class names are the labels in alphabetical order, or by number if all of them are numbers.

    Raises:
        UserError: The manifest is missing, lacks a column, is empty, or names a split, a kind of file or a file
            that cannot be used; the message names the line.
    """
    return write_files(_read_manifest(csv), out, samples_per_shard, seed)


def _read_manifest(manifest: Path) -> list[ListedFile]:
    if not manifest.is_file():
        raise UserError(f"manifest {manifest}: no such file")
    with manifest.open(newline="", encoding="utf-8-sig") as lines:
        reader = DictReader(lines)
        found = reader.fieldnames or []
        missing = [column for column in ("path", "label") if column not in found]
        if missing:
            raise UserError(
                f"manifest {manifest}: has no column '{missing[0]}', only {', '.join(found) or 'none'}; "
                "the first line must name path, label and, if wanted, split"
            )
        files = [
            _manifest_row(row, f"manifest {manifest}, line {reader.line_num}", manifest) for row in reader
        ]
    check_files(files, f"manifest {manifest}")
    return files


def _manifest_row(row: dict[str, str | None], where: str, manifest: Path) -> ListedFile:
    """Check one row while the line it stands in is still known.

    Raises:
        UserError: Something in it cannot be used.
    """
    path, label, split = row["path"], row["label"], row.get("split", "train")
    if not path or not label:
        raise UserError(f"{where}: path is {path!r} and label is {label!r}; both must be given")
    if split not in SPLITS:
        raise UserError(f"{where}: split is {split!r}, must be one of {', '.join(SPLITS)}")
    if extension(Path(path)) not in FIELD_MODALITY:
        raise UserError(f"{where}: {path} is no medium known here; known are {', '.join(FIELD_MODALITY)}")
    if not (manifest.parent / path).is_file():
        raise UserError(
            f"{where}: {manifest.parent / path}: no such file; paths are relative to the manifest"
        )
    return ListedFile(manifest.parent / path, label, SPLITS[split])
