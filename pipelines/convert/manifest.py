"""Converter of a table, CSV or Parquet, that lists files with their labels."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from perceiver_dist.errors import UserError
from pipelines.convert.conversion import Conversion
from pipelines.convert.listed import ListedSample, check_samples, convert_listed
from pipelines.convert.text_files import csv_rows, read_text_file
from pipelines.convert.tree_layout import split_of
from pipelines.fields import FIELD_MODALITY, field_of

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
    encoding: str | None = None,
    samples_per_shard: int = 1000,
    seed: int = 0,
) -> Conversion:
    """Convert the files listed in a table.

    Args:
        table: CSV file whose first line has the column names, or Parquet file; one sample per row.
        out: Path or URI of the folder to write to; its last part becomes the name of the source.
        root: Folder that the paths are relative to; None for the folder of the table.
        path_columns: Columns with the files of a sample. With several columns, some may be empty in a row.
        label_column: Column with the label, any text.
        label_separator: Separator of the labels of a sample; makes the source multilabel. In Parquet, lists of labels
            do the same.
        split_column: Column with the split: train, valid, test or another usual name, in upper or lower case. Without
            such a column, all samples are for training.
        eval_splits: Values of that column that mean held-out, such as the number of a fold; all other values then mean
            training.
        encoding: Encoding of a CSV file, such as cp1252. null: that of its byte order mark, or else UTF-8.
        samples_per_shard: Samples per shard; the last shard of a split may have fewer.
        seed: Seed of the order of the samples.

    Returns:
        The conversion. Class names are the labels in alphabetical order, or in numerical order if all are numbers.
            Whole numbers that a table holds as 1.0 become 1.

    Raises:
        UserError: The table is missing, lacks a column or is empty, or a row names an unknown split, an unknown file
            type or a missing file; the message names the row.
    """
    if not table.is_file():
        raise UserError(f"table {table}: no such file")
    samples: list[ListedSample] = []
    multilabel = label_separator is not None
    remarks: tuple[str, ...] = ()
    for where, row in _rows(table, encoding):
        if not samples:
            _check_columns(row, [*path_columns, label_column], split_column if eval_splits else None, table)
            if split_column not in row:
                remarks = (
                    f"table {table}: no column '{split_column}': all samples for training, none held out",
                )
        labels = row[label_column]
        multilabel = multilabel or isinstance(labels, list)
        paths = _paths(row, path_columns, root or table.parent, where)
        split = _split(row.get(split_column, "train"), eval_splits, where)
        samples.append(ListedSample(paths, _labels(labels, label_separator, where), split))
    check_samples(samples, f"table {table}")
    task = "multilabel" if multilabel else "softmax"
    named = _with_whole_numbers(samples)
    return convert_listed(named, out, samples_per_shard, seed, task=task, remarks=remarks)


def _rows(table: Path, encoding: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return _parquet_rows(table) if table.suffix.lower() in _PARQUET else _csv_rows(table, encoding)


def _csv_rows(table: Path, encoding: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name and the entries by column of every row.

    Raises:
        UserError: The file is not text, or a row has not as many entries as there are columns.
    """
    what = f"table {table}"
    rows = csv_rows(read_text_file(table, what, encoding), what)
    _, columns = next(rows, (0, []))
    for line, row in rows:
        if len(row) != len(columns):
            raise UserError(
                f"{what}, line {line}: has {len(row)} entries, expected {len(columns)} as in the first line; put "
                "quotes around entries that hold commas"
            )
        yield f"{what}, line {line}", dict(zip(columns, row, strict=True))


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
    names = [str(row[column]) for column in columns if _is_given(row[column]) and str(row[column])]
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
        text = str(value) if _is_given(value) else ""
        values = [text] if separator is None else text.split(separator)
    labels = tuple(dict.fromkeys(name for one in values if _is_given(one) and (name := str(one).strip())))
    if not labels and separator is None and not isinstance(value, list):
        raise UserError(f"{where}: the label is empty; every sample needs one")
    return labels


def _is_given(value: Any) -> bool:
    """Return whether an entry has a value: table libraries write a missing one as None, or as NaN."""
    return value is not None and value == value


_FLOAT_OF_WHOLE_NUMBER = re.compile(r"(-?\d+)(\.0*)?")


def _with_whole_numbers(samples: list[ListedSample]) -> list[ListedSample]:
    """Write labels such as 1.0 as 1, if all labels are whole numbers: table libraries turn them into floats."""
    whole = {
        label: match[1] if (match := _FLOAT_OF_WHOLE_NUMBER.fullmatch(label)) else None
        for sample in samples
        for label in sample.labels
    }
    if None in whole.values() or all(label == name for label, name in whole.items()):
        return samples
    return [
        replace(sample, labels=tuple(dict.fromkeys(str(whole[label]) for label in sample.labels)))
        for sample in samples
    ]


def _split(value: Any, eval_splits: Sequence[str] | None, where: str) -> str:
    """Return the split of a row: train or eval.

    Raises:
        UserError: The value is not the name of a split.
    """
    if eval_splits is not None:
        return "eval" if str(value) in eval_splits else "train"
    split = split_of(str(value))
    if split is None:
        raise UserError(
            f"{where}: split is {value!r}, expected a usual name such as train, valid or test; for other values set "
            "--eval_splits"
        )
    return split
