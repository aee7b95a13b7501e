"""AudioSet: its lists of segments, its list of classes, and a folder with the clips that could be had."""

import csv
from pathlib import Path

from perceiver_dist.errors import UserError
from pipelines.convert.conversion import Conversion
from pipelines.convert.listed import ListedSample, check_samples, convert_listed
from pipelines.decode import FIELD_MODALITY, field_of


def convert_audioset(
    clips: Path,
    classes: Path,
    train: Path,
    out: str,
    eval: Path | None = None,  # noqa: A002  # what the other converters call it
    samples_per_shard: int = 500,
    seed: int = 0,
) -> Conversion:
    """Convert clips of AudioSet, each with all its labels.

    Args:
        clips: Folder with the clips, sound or video, at any depth. A file is called by the id of the video, alone or
            followed by an underscore and the start in seconds or milliseconds: `ID.mp4`, `ID_30.flac`,
            `ID_30.000.mp4`, `ID_30000.wav`, or by start and end, `ID_30_40.mp4`.
        classes: class_labels_indices.csv as published: index, mid, display_name.
        train: balanced_train_segments.csv or unbalanced_train_segments.csv as published.
        out: Path or URI of the folder to write to; its name becomes the source's.
        eval: eval_segments.csv as published; null for no held-out samples.
        samples_per_shard: Samples in every shard but the last of a split.
        seed: Decides the order of the samples.

    Returns:
        The conversion, multilabel, with the published names and numbers of the classes. Clips of the lists that are not
        in the folder are left out and counted in a remark: many videos do not exist any more.

    Raises:
        UserError: A file is missing or not as published, or none of the clips is there.
    """
    if not clips.is_dir():
        raise UserError(f"folder {clips}: no such folder")
    names = {row[1]: row[2] for row in _rows(classes) if row[0] != "index"}
    there = {
        path.stem: path
        for path in sorted(clips.rglob("*"))
        if field_of(path) in FIELD_MODALITY and not path.name.startswith(".")
    }
    samples: list[ListedSample] = []
    remarks: list[str] = []
    for split, table in (("train", train), ("eval", eval)):
        if table is None:
            continue
        rows = [row for row in _rows(table) if not row[0].startswith("#")]
        found = [
            ListedSample((path,), _labels(row, names, table), split)
            for row in rows
            if (path := _clip(row, there)) is not None
        ]
        samples += found
        if len(found) < len(rows):
            remarks.append(
                f"{table}: {len(rows) - len(found)} of {len(rows)} clips are not in {clips}; left out"
            )
    check_samples(samples, f"folder {clips}")
    return convert_listed(
        samples, out, samples_per_shard, seed, list(names.values()), "multilabel", tuple(remarks)
    )


def _rows(table: Path) -> list[list[str]]:
    """Return a list's lines of at least three entries.

    Raises:
        UserError: The file is missing, or a line has fewer.
    """
    if not table.is_file():
        raise UserError(f"table {table}: no such file")
    with table.open(newline="", encoding="utf-8") as lines:
        reader = csv.reader(lines, skipinitialspace=True)
        rows = []
        for row in reader:
            if len(row) < 3 and not row[0].startswith("#"):
                raise UserError(
                    f"table {table}, line {reader.line_num}: {len(row)} entries, expected 3 or 4 as published"
                )
            rows.append(row)
    return rows


def _labels(row: list[str], names: dict[str, str], table: Path) -> tuple[str, ...]:
    """Return the names of a segment's classes.

    Raises:
        UserError: One is not among the classes.
    """
    labels = row[3].split(",")
    for label in labels:
        if label not in names:
            raise UserError(
                f"table {table}: '{row[0]}' has the label {label}, which is not in the list of classes"
            )
    return tuple(names[label] for label in labels)


def _clip(row: list[str], there: dict[str, Path]) -> Path | None:
    """Return a segment's file, if it is there."""
    start, end = (float(value) for value in row[1:3])
    spellings = [
        f"_{form(start)}{more}"
        for form in (_whole, _decimals, _milliseconds)
        for more in ("", f"_{form(end)}")
    ]
    stems = [row[0], *(row[0] + spelling for spelling in spellings)]
    return next((there[stem] for stem in stems if stem in there), None)


def _whole(seconds: float) -> str:
    return str(int(seconds))


def _decimals(seconds: float) -> str:
    return f"{seconds:.3f}"


def _milliseconds(seconds: float) -> str:
    return str(round(1000 * seconds))
