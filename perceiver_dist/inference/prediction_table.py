"""The rows of predictions: what the model says of each sample of a unit, or why it says nothing."""

import numpy as np
import pyarrow as pa

from perceiver_dist.inference.scoring import ScoredUnit
from perceiver_dist.inference.trained_model import probabilities_of, sees_nothing
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


def prediction_table(unit: ScoredUnit, source: SourceConfig, top: int) -> pa.Table:
    """Return a row for each sample of a unit.

    Args:
        unit: The scored unit.
        source: Whose classes.
        top: How many of the likeliest classes are named.

    Returns:
        Columns shard, key, labels, classes and probabilities (the likeliest first), modalities (what the model saw),
        error, and embedding if the unit has them. Of a sample that could not be used there are shard, key and error
        alone; of all others error is null.
    """
    names = source.shown_classes
    errors = _errors(unit, source)
    [logits] = unit.logits.values()
    likeliest = probabilities_of(logits, source.task).sort(dim=1, descending=True, stable=True)
    classes, probabilities = likeliest.indices[:, :top].tolist(), likeliest.values[:, :top].tolist()
    rows = range(len(unit.places))

    def of_good(values: list[list[object]]) -> list[list[object] | None]:
        return [None if errors[row] else values[row] for row in rows]

    columns = {
        "shard": [place.shard for place in unit.places],
        "key": [place.key for place in unit.places],
        "labels": of_good([[names[number] for number in numbers] for numbers in classes]),
        "classes": of_good(classes),
        "probabilities": of_good(probabilities),
        "modalities": of_good([_seen(unit, row) for row in rows]),
        "error": errors,
    }
    table = pa.table({name: pa.array(values, _COLUMNS[name]) for name, values in columns.items()})
    if unit.embeddings is None:
        return table
    values = np.asarray(unit.embeddings[: len(rows)])
    missing = pa.array([error is not None for error in errors], pa.bool_())
    embeddings = pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1], mask=missing)
    return table.append_column("embedding", embeddings)


def _errors(unit: ScoredUnit, source: SourceConfig) -> list[str | None]:
    reasons: dict[tuple[str, str], str] = {(bad.shard, bad.key): bad.reason for bad in unit.bad}
    return [
        reasons.get(place) or (None if _seen(unit, row) else sees_nothing(source))
        for row, place in enumerate(unit.places)
    ]


def _seen(unit: ScoredUnit, row: int) -> list[object]:
    return [modality for modality, flags in unit.present.items() if flags[row]]
