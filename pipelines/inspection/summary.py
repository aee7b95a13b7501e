"""Summary of shards: counts from their indexes, labels, and sizes and lengths from the headers of random samples."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import pyarrow as pa
import pyarrow.compute as pc

from perceiver_dist.modalities import MODALITIES
from pipelines.errors import SampleError
from pipelines.fields import FIELD_MODALITY
from pipelines.inspection.headers import Measures, measure
from pipelines.inspection.sample_check import LabelRules
from pipelines.inspection.shard_access import draw_samples, map_samples
from pipelines.shards.sample_reader import RawSample, stored_index
from pipelines.shards.shard_index import SourceIndex
from pipelines.shards.source import DEFAULT_DATA

_LABELS_AT_ONCE = 256
"""Samples per task of reading labels: labels are small, and neighbors are read with one request."""
_SEPARATOR = "\0"
"""Separator between the field names of a sample; a name in a tar cannot contain it."""


@dataclass(frozen=True)
class LabelCounts:
    """Number of samples per class.

    Attributes:
        samples: Samples whose labels were read.
        unreadable: Those with a missing or invalid label.
        without_class: Those whose label is empty, which multilabel allows.
        classes: Number of samples by class, in the order of the classes. Classes without a sample are included only if
            the number of classes is known.
    """

    samples: int
    unreadable: int
    without_class: int
    classes: dict[int, int]


@dataclass(frozen=True)
class Spread:
    """Distribution of a measured value. Its attributes are keys of the JSON output.

    Attributes:
        samples: Number of samples that have it.
        least: The minimum.
        median: The median.
        most: The maximum.
    """

    samples: int
    least: float
    median: float
    most: float


@dataclass(frozen=True)
class Summary:
    """Content of shards. Its attributes are keys of the JSON output.

    Attributes:
        shards: Number of shards.
        samples: Number of samples.
        bytes: Size of the shards.
        fields: Number of samples by field, the most frequent first.
        modalities: Number of samples by modality; audio counts audio files, not the audio tracks of videos.
        without_media: Samples without any modality.
        strays: Members of the shards that belong to no sample, such as README.md.
        refused: Samples that the index rejects, because of a link or a duplicate field.
        duplicated_keys: Keys of more than one sample.
        labels: Number of samples per class.
        headers: Samples whose headers were read.
        unreadable: Those of them with an unreadable header.
        measures: Values from the headers, by modality and name.
    """

    shards: int
    samples: int
    bytes: int
    fields: dict[str, int]
    modalities: dict[str, int]
    without_media: int
    strays: int
    refused: int
    duplicated_keys: int
    labels: LabelCounts
    headers: int
    unreadable: int
    measures: dict[str, dict[str, Spread]]


def summarise(
    index: SourceIndex, rules: LabelRules, max_labels: int, max_headers: int, seed: int = 0
) -> Summary:
    """Summarize the content of shards.

    Args:
        index: The shards' index.
        rules: Requirements of a label.
        max_labels: Max samples whose labels are read; of more samples, as many are drawn.
        max_headers: Max samples whose headers are read; of more samples, as many are drawn.
        seed: Seed of the draw.

    Returns:
        The summary.

    Raises:
        ShardError: A shard was removed or changed, or cannot be read.
    """
    combinations, keys, refused = _count_index(index)
    modalities = {
        names: {FIELD_MODALITY[name] for name in names if name in FIELD_MODALITY} for names in combinations
    }
    fields = Counter[str]()
    for names, count in combinations.items():
        fields.update(dict.fromkeys(names, count))
    found = map_samples(
        _measure_sample,
        index,
        sorted(draw_samples(index, max_headers, seed)),
        frozenset(FIELD_MODALITY),
        samples_at_once=1,  # media may be large
    )
    return Summary(
        shards=len(index.shards),
        samples=index.samples,
        bytes=sum(shard.bytes for shard in index.shards),
        fields=dict(fields.most_common()),
        modalities={
            modality: count
            for modality in MODALITIES
            if (count := sum(combinations[names] for names, of in modalities.items() if modality in of))
        },
        without_media=sum(combinations[names] for names, of in modalities.items() if not of),
        strays=index.strays,
        refused=refused,
        duplicated_keys=keys,
        labels=_count_labels(index, rules, sorted(draw_samples(index, max_labels, seed))),
        headers=len(found),
        unreadable=found.count(None),
        measures=_spreads([measures for measures in found if measures is not None]),
    )


def _count_index(index: SourceIndex) -> tuple[Counter[tuple[str, ...]], int, int]:
    """Count samples by their field names, keys that occur more than once, and samples that the index rejects."""
    combinations = Counter[tuple[str, ...]]()
    keys: list[pa.ChunkedArray] = []
    refused = 0
    for shard in index.shards:
        table = stored_index(shard, DEFAULT_DATA.storage_seconds)
        keys.append(table["key"])
        refused += pc.sum(pc.not_equal(table["problem"], "")).as_py()
        for entry in pc.value_counts(pc.binary_join(table["fields"], _SEPARATOR)).to_pylist():
            combinations[tuple(entry["values"].split(_SEPARATOR))] += entry["counts"]
    every = pa.chunked_array([chunk for column in keys for chunk in column.chunks])
    counts = pc.value_counts(every).field("counts")
    return combinations, pc.sum(pc.greater(counts, 1)).as_py(), refused


def _count_labels(index: SourceIndex, rules: LabelRules, samples: Sequence[int]) -> LabelCounts:
    def classes_of(sample: RawSample) -> list[int] | None:
        try:
            return rules.classes(sample)
        except SampleError:
            return None

    found = map_samples(classes_of, index, samples, frozenset({rules.field}), _LABELS_AT_ONCE)
    counts = Counter(label for classes in found for label in classes or ())
    return LabelCounts(
        samples=len(found),
        unreadable=found.count(None),
        without_class=found.count([]),
        classes={label: counts[label] for label in sorted({*counts, *range(rules.num_classes or 0)})},
    )


def _measure_sample(sample: RawSample) -> Mapping[str, Measures] | None:
    """Return the values from the headers of a sample's media, by modality; None if a header is unreadable."""
    if sample.problem:
        return None
    try:
        return {FIELD_MODALITY[field]: measure(field, data) for field, data in sample.fields.items()}
    except SampleError:
        return None


def _spreads(samples: Sequence[Mapping[str, Measures]]) -> dict[str, dict[str, Spread]]:
    values: dict[str, dict[str, list[float]]] = {}
    for modality in MODALITIES:
        for measures in samples:
            for name, value in measures.get(modality, {}).items():
                values.setdefault(modality, {}).setdefault(name, []).append(value)
    return {
        modality: {name: Spread(len(all_), min(all_), median(all_), max(all_)) for name, all_ in of.items()}
        for modality, of in values.items()
    }
