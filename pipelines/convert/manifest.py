"""A table, CSV or Parquet, that lists files with their labels."""

from collections.abc import Iterator, Mapping, Sequence
from csv import DictReader
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from perceiver_dist.errors import UserError
from pipelines.convert.conversion import Conversion
from pipelines.convert.listed import SPLITS, ListedSample, check_samples, convert_listed
from pipelines.decode import FIELD_MODALITY, field_of

_PARQUET = (".parquet", ".pq")


def convert_manifest(
    table: Path,
    out: str,
    root: Path | None = None,
    path_columns: Sequence[str] = ("path",),
    label_column: str = "label",
    label_separator: str | None = None,
    split_column: str = "split",
    eval_splits: Sequence[str] | None = None,
    samples_per_shard: int = 1000,
    seed: int = 0,
) -> Conversion:
    """Convert the files that a table lists.

    Args:
        table: A CSV file in UTF-8 whose first line names its columns, or a Parquet file; a sample in each row.
        out: Path or URI of the folder to write to; its name becomes the source's.
        root: Folder that the paths are relative to; None for the table's own.
        path_columns: Columns with a file of the sample. Of several, some may be empty in a row.
        label_column: Column with the label, any text.
        label_separator: What stands between the labels of a sample that has several; the source is multilabel then. In
            Parquet a list of labels may stand there instead.
        split_column: Column that says train, or one of eval, validation, val, test. Without it all is for training.
        eval_splits: What that column says of held-out samples, where it says something else, such as the number of a
            fold; everything else is for training then.
        samples_per_shard: Samples in every shard but the last of a split.
        seed: Decides the order of the samples.

    Returns:
        The conversion. Class names are the labels in alphabetical order, or by number if all of them are numbers.

    Raises:
        UserError: The table is missing, lacks a column, is empty, or names a split, a kind of file or a file that
            cannot be used; the message names the row.
    """
    if not table.is_file():
        raise UserError(f"table {table}: no such file")
    parquet = table.suffix.lower() in _PARQUET
    samples: list[ListedSample] = []
    several = label_separator is not None
    for where, row in _parquet_rows(table) if parquet else _csv_rows(table):
        if not samples:
            _check_columns(row, [*path_columns, label_column], split_column if eval_splits else None, table)
        labels = row[label_column]
        several = several or isinstance(labels, list)
        samples.append(
            ListedSample(
                _paths(row, path_columns, root or table.parent, where),
                _labels(labels, label_separator, where),
                _split(row.get(split_column, "train"), eval_splits, where),
            )
        )
    check_samples(samples, f"table {table}")
    return convert_listed(samples, out, samples_per_shard, seed, task="multilabel" if several else "softmax")


def _csv_rows(table: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with table.open(newline="", encoding="utf-8-sig") as lines:
        reader = DictReader(lines)
        for row in reader:
            yield f"table {table}, line {reader.line_num}", row


def _parquet_rows(table: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        file = pq.ParquetFile(table)
    except pa.ArrowException as error:
        raise UserError(f"table {table}: is no Parquet file ({str(error).splitlines()[0]})") from error
    number = 0
    for batch in file.iter_batches():
        for row in batch.to_pylist():
            yield f"table {table}, row {number}", row
            number += 1


def _check_columns(row: Mapping[str, Any], needed: Sequence[str], split: str | None, table: Path) -> None:
    """Make sure that the table has the columns that were asked for.

    Raises:
        UserError: One is missing.
    """
    for column in [*needed, *([split] if split else [])]:
        if column not in row:
            raise UserError(
                f"table {table}: has no column '{column}', only {', '.join(map(str, row)) or 'none'}; name the columns "
                "with --path_columns, --label_column and --split_column"
            )


def _paths(row: Mapping[str, Any], columns: Sequence[str], root: Path, where: str) -> tuple[Path, ...]:
    """Return a row's files.

    Raises:
        UserError: There is none, or one that cannot be used.
    """
    names = [row[column] for column in columns if row[column]]
    if not names:
        raise UserError(f"{where}: {' and '.join(columns)}: empty; name a file")
    paths = tuple(root / name for name in names)
    for path in paths:
        if field_of(path) not in FIELD_MODALITY:
            raise UserError(
                f"{where}: {path.name} is no medium known here; known are {', '.join(FIELD_MODALITY)}"
            )
        if not path.is_file():
            raise UserError(f"{where}: {path}: no such file; --root says what paths are relative to")
    if len({FIELD_MODALITY[field_of(path)] for path in paths}) < len(paths):
        raise UserError(
            f"{where}: {' and '.join(map(str, names))} are of one modality; a sample has one file of each"
        )
    return paths


def _labels(value: Any, separator: str | None, where: str) -> tuple[str, ...]:
    """Return a row's labels.

    Raises:
        UserError: There is none.
    """
    if isinstance(value, list):
        values = value
    else:
        text = "" if value is None else str(value)
        values = [text] if separator is None else text.split(separator)
    labels = tuple(dict.fromkeys(name for one in values if (name := str(one).strip())))
    if not labels and separator is None and not isinstance(value, list):
        raise UserError(f"{where}: the label is empty; every sample needs one")
    return labels


def _split(value: Any, eval_splits: Sequence[str] | None, where: str) -> str:
    """Return whether a row is for training or evaluation.

    Raises:
        UserError: It says neither.
    """
    if eval_splits is not None:
        return "eval" if str(value) in eval_splits else "train"
    if value not in SPLITS:
        raise UserError(
            f"{where}: split is {value!r}, must be one of {', '.join(SPLITS)}; --eval_splits takes others"
        )
    return SPLITS[value]
