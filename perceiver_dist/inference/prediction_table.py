"""Table of predictions: one row per sample, with its most likely classes or the reason why there are none."""

import numpy as np
import pyarrow as pa

from perceiver_dist.inference.scoring import ScoredUnit
from perceiver_dist.inference.trained_model import lacks_modalities, probabilities_of
from pipelines.shards.source import SourceConfig

_COLUMNS = {
    "shard": pa.string(),
    "key": pa.string(),
    "labels": pa.list_(pa.string()),
    "classes": pa.list_(pa.int32()),
    "probabilities": pa.list_(pa.float32()),
    "modalities": pa.list_(pa.string()),
    "error": pa.string(),
}
"""Explicit types, so that a part in which all values of a column are null has the same schema as the others."""


def prediction_table(unit: ScoredUnit, source: SourceConfig, top: int) -> pa.Table:
    """Return a table with one row per sample of a unit.

    Args:
        unit: The scored unit.
        source: Source whose classes are predicted.
        top: Number of most likely classes per sample.

    Returns:
        Columns shard, key, labels, classes and probabilities (most likely first), modalities (those that the sample
        has), error, and embedding if the unit has embeddings. For a sample that could not be used, all columns but
        shard, key and error are null; for all others error is null.
    """
    names = source.shown_classes
    errors = _errors(unit, source)
    [logits] = unit.logits.values()  # predictions are scored with one subset, all modalities
    # Stable, so that classes of equal probability keep the same order on every device.
    ranked = probabilities_of(logits, source.task).sort(dim=1, descending=True, stable=True)
    classes, probabilities = ranked.indices[:, :top].tolist(), ranked.values[:, :top].tolist()
    rows = range(len(unit.locations))

    def unless_error(values: list[list[object]]) -> list[list[object] | None]:
        return [None if errors[row] else values[row] for row in rows]

    columns = {
        "shard": [location.shard for location in unit.locations],
        "key": [location.key for location in unit.locations],
        "labels": unless_error([[names[number] for number in numbers] for numbers in classes]),
        "classes": unless_error(classes),
        "probabilities": unless_error(probabilities),
        "modalities": unless_error([_modalities(unit, row) for row in rows]),
        "error": errors,
    }
    table = pa.table({name: pa.array(values, _COLUMNS[name]) for name, values in columns.items()})
    if unit.embeddings is None:
        return table
    values = np.asarray(unit.embeddings[: len(rows)])
    # Arrow needs values for masked rows too; those of samples with an error are meaningless.
    missing = pa.array([error is not None for error in errors], pa.bool_())
    embeddings = pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1], mask=missing)
    return table.append_column("embedding", embeddings)


def _errors(unit: ScoredUnit, source: SourceConfig) -> list[str | None]:
    reasons: dict[tuple[str, str], str] = {(bad.shard, bad.key): bad.reason for bad in unit.bad}
    return [
        reasons.get(location) or (None if _modalities(unit, row) else lacks_modalities(source))
        for row, location in enumerate(unit.locations)
    ]


def _modalities(unit: ScoredUnit, row: int) -> list[object]:
    return [modality for modality, flags in unit.present.items() if flags[row]]
