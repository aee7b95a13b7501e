"""AudioSet converter: published segment lists, published class list, and a folder of downloaded clips."""

from pathlib import Path

from perceiver_dist.errors import UserError
from pipelines.convert.conversion import Conversion
from pipelines.convert.listed import ListedSample, check_samples, convert_listed
from pipelines.convert.text_files import csv_rows, read_text_file
from pipelines.fields import FIELD_MODALITY, field_of


def convert_audioset(
    clips: Path,
    classes: Path,
    train: Path,
    out: str,
    eval: Path | None = None,  # noqa: A002  # the option is named after the split, as in the output
    samples_per_shard: int = 500,
    seed: int = 0,
) -> Conversion:
    """Convert AudioSet clips, each with all its labels.

    Args:
        clips: Folder with the clips, audio or video, at any depth. A file is named by the id of the video, alone or
            followed by an underscore and the start in seconds or milliseconds: `ID.mp4`, `ID_30.flac`,
            `ID_30.000.mp4`, `ID_30000.wav`, or by start and end: `ID_30_40.mp4`.
        classes: class_labels_indices.csv as published, with the columns index, mid, display_name.
        train: balanced_train_segments.csv or unbalanced_train_segments.csv as published.
        out: Path or URI of the folder to write to; its last part becomes the name of the source.
        eval: eval_segments.csv as published; null for no held-out samples.
        samples_per_shard: Samples per shard; the last shard of a split may have fewer.
        seed: Seed of the order of the samples.

    Returns:
        The conversion, multilabel, with the published class names and numbers. Clips that are listed but not in the
            folder are skipped and counted in a remark: many videos no longer exist.

    Raises:
        UserError: A file is missing or not as published, or no training clip is found.
    """
    if not clips.is_dir():
        raise UserError(f"folder {clips}: no such folder")
    names = {row[1]: row[2] for row in _rows(classes) if row[0] != "index"}
    found_files = {
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
            if (path := _find_clip(row, found_files)) is not None
        ]
        samples += found
        if len(found) < len(rows):
            remarks.append(
                f"{table}: {len(rows) - len(found)} of {len(rows)} clips are not in {clips}; skipped"
            )
    check_samples(samples, f"folder {clips}")
    return convert_listed(
        samples, out, samples_per_shard, seed, list(names.values()), "multilabel", tuple(remarks)
    )


def _rows(table: Path) -> list[list[str]]:
    """Return the rows of a published list.

    Raises:
        UserError: The file is missing or not text, or a row has fewer than three entries.
    """
    what = f"table {table}"
    rows = []
    for line, row in csv_rows(read_text_file(table, what), what, skip_spaces=True):
        if len(row) < 3 and not row[0].startswith("#"):
            raise UserError(f"{what}, line {line}: {len(row)} entries, expected 3 or 4 as published")
        rows.append(row)
    return rows


def _labels(row: list[str], names: dict[str, str], table: Path) -> tuple[str, ...]:
    """Return the class names of a segment.

    Raises:
        UserError: A label is not in the class list.
    """
    labels = row[3].split(",")
    for label in labels:
        if label not in names:
            raise UserError(
                f"table {table}: '{row[0]}' has the label {label}, which is not in the list of classes"
            )
    return tuple(names[label] for label in labels)


def _find_clip(row: list[str], found_files: dict[str, Path]) -> Path | None:
    """Return the file of a segment, or None if it is missing. Downloaders name clips in different ways."""
    start, end = (float(value) for value in row[1:3])
    spellings = [
        f"_{form(start)}{suffix}"
        for form in (_whole, _decimals, _milliseconds)
        for suffix in ("", f"_{form(end)}")
    ]
    stems = [row[0], *(row[0] + spelling for spelling in spellings)]
    return next((found_files[stem] for stem in stems if stem in found_files), None)


def _whole(seconds: float) -> str:
    return str(int(seconds))


def _decimals(seconds: float) -> str:
    return f"{seconds:.3f}"


def _milliseconds(seconds: float) -> str:
    return str(round(1000 * seconds))
