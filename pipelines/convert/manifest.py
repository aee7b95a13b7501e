"""Converter of a table, CSV or Parquet, that lists files with their labels."""

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
    """Convert the files listed in a table.

    Args:
        table: CSV file in UTF-8 whose first line has the column names, or Parquet file; one sample per row.
        out: Path or URI of the folder to write to; its last part becomes the name of the source.
        root: Folder that the paths are relative to; None for the folder of the table.
        path_columns: Columns with the files of a sample. With several columns, some may be empty in a row.
        label_column: Column with the label, any text.
        label_separator: Separator of the labels of a sample; makes the source multilabel. In Parquet, lists of labels
            do the same.
        split_column: Column with the split: train, or one of eval, validation, val, test. Without such a column, all
            samples are for training.
        eval_splits: Values of that column that mean held-out, such as the number of a fold; all other values then mean
            training.
        samples_per_shard: Samples per shard; the last shard of a split may have fewer.
        seed: Seed of the order of the samples.

    Returns:
        The conversion. Class names are the labels in alphabetical order, or in numerical order if all are numbers.

    Raises:
        UserError: The table is missing, lacks a column or is empty, or a row names an unknown split, an unknown file
            type or a missing file; the message names the row.
    """
    if not table.is_file():
        raise UserError(f"table {table}: no such file")
    parquet = table.suffix.lower() in _PARQUET
    samples: list[ListedSample] = []
    multilabel = label_separator is not None
    has_split = True
    for where, row in _parquet_rows(table) if parquet else _csv_rows(table):
        if not samples:
            has_split = split_column in row
            _check_columns(row, [*path_columns, label_column], split_column if eval_splits else None, table)
        labels = row[label_column]
        multilabel = multilabel or isinstance(labels, list)
        samples.append(
            ListedSample(
                _paths(row, path_columns, root or table.parent, where),
                _labels(labels, label_separator, where),
                _split(row.get(split_column, "train"), eval_splits, where),
            )
        )
    check_samples(samples, f"table {table}")
    remarks = () if has_split else (_no_split_remark(table, split_column, len(samples)),)
    task = "multilabel" if multilabel else "softmax"
    return convert_listed(samples, out, samples_per_shard, seed, task=task, remarks=remarks)


def _no_split_remark(table: Path, column: str, samples: int) -> str:
    return f"table {table}: no column '{column}': all {samples:,} samples for training, none held out"


def _csv_rows(table: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with table.open(newline="", encoding="utf-8-sig") as lines:
        reader = DictReader(lines)
        for row in reader:
            yield f"table {table}, line {reader.line_num}", row


def _parquet_rows(table: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        file = pq.ParquetFile(table)
    except pa.ArrowException as error:
        raise UserError(f"table {table}: is not a Parquet file ({str(error).splitlines()[0]})") from error
    number = 0
    for batch in file.iter_batches():
        for row in batch.to_pylist():
            yield f"table {table}, row {number}", row
            number += 1


def _check_columns(row: Mapping[str, Any], needed: Sequence[str], split: str | None, table: Path) -> None:
    """Check that the table has the needed columns.

    Raises:
        UserError: A column is missing.
    """
    for column in [*needed, *([split] if split else [])]:
        if column not in row:
            raise UserError(
                f"table {table}: has no column '{column}', only {', '.join(map(str, row)) or 'none'}; set the column "
                "names with --path_columns, --label_column and --split_column"
            )


def _paths(row: Mapping[str, Any], columns: Sequence[str], root: Path, where: str) -> tuple[Path, ...]:
    """Return the files of a row.

    Raises:
        UserError: No file is given, a file is missing or of an unknown type, or two have one modality.
    """
    names = [row[column] for column in columns if row[column]]
    if not names:
        raise UserError(f"{where}: {' and '.join(columns)}: empty; name a file")
    paths = tuple(root / name for name in names)
    for path in paths:
        if field_of(path) not in FIELD_MODALITY:
            raise UserError(
                f"{where}: {path.name} has an unknown file type; known are {', '.join(FIELD_MODALITY)}"
            )
        if not path.is_file():
            raise UserError(
                f"{where}: {path}: no such file; paths are relative to --root, or else to the table"
            )
    if len({FIELD_MODALITY[field_of(path)] for path in paths}) < len(paths):
        raise UserError(
            f"{where}: {' and '.join(map(str, names))} have the same modality; a sample has one file per modality"
        )
    return paths


def _labels(value: Any, separator: str | None, where: str) -> tuple[str, ...]:
    """Return the labels of a row, without duplicates.

    Raises:
        UserError: A softmax label is empty.
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
    """Return the split of a row: train or eval.

    Raises:
        UserError: The value is not the name of a split.
    """
    if eval_splits is not None:
        return "eval" if str(value) in eval_splits else "train"
    if value not in SPLITS:
        raise UserError(
            f"{where}: split is {value!r}, must be one of {', '.join(SPLITS)}; for other values set --eval_splits"
        )
    return SPLITS[value]
