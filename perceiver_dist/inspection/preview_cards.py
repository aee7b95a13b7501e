"""Random samples of shards as cards of a preview page, each decoded in its own child process."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perceiver_dist.modalities import MODALITIES
from pipelines.augment.randomness import evaluation_randomness
from pipelines.decode.sample import Decode
from pipelines.decode.sandbox import sandboxed
from pipelines.errors import SampleError
from pipelines.fields import FIELD_MODALITY
from pipelines.inspection.headers import Measures
from pipelines.inspection.media_preview import preview_medium
from pipelines.inspection.sample_check import LabelRules
from pipelines.inspection.shard_access import draw_samples
from pipelines.limits import DEFAULT_LIMITS
from pipelines.shards.sample_reader import RawSample, read_samples
from pipelines.shards.shard_index import SourceIndex
from pipelines.units.unit_maker import BadSample


@dataclass(frozen=True)
class Medium:
    """One medium of a sample.

    Attributes:
        field: Name of its field.
        arrays: The decoded arrays by modality; empty if the medium is bad.
        measures: Values from its header.
        problem: Why it is bad; "" if it is good.
    """

    field: str
    arrays: dict[str, np.ndarray]
    measures: Measures
    problem: str = ""


@dataclass(frozen=True)
class Card:
    """One sample.

    Attributes:
        shard: Path or URI of its tar file.
        key: Its key.
        classes: Its class names, or class numbers if no names are known.
        media: Its media.
        problems: Problems of the sample itself or of its label.
    """

    shard: str
    key: str
    classes: list[str]
    media: list[Medium]
    problems: list[str]


def draw_cards(
    index: SourceIndex, rules: LabelRules, class_names: Sequence[str], count: int, seed: int
) -> list[Card]:
    """Draw samples, and decode them for display.

    Args:
        index: The shards' index.
        rules: Requirements of a label.
        class_names: Names of the classes; empty to show numbers.
        count: Number of samples; all if there are fewer.
        seed: Seed of the draw.

    Returns:
        The cards, in the order drawn.

    Raises:
        ShardError: A shard was removed or changed, or cannot be read.
    """
    cards = []
    with sandboxed(preview_medium) as view:
        for number in draw_samples(index, count, seed):
            [sample] = read_samples(index, [number], rules.wanted_fields)
            cards.append(_card(sample, rules, class_names, view))
    return cards


def _card(sample: RawSample, rules: LabelRules, class_names: Sequence[str], view: Decode) -> Card:
    if sample.problem:
        return Card(sample.shard, sample.key, [], [], [sample.problem])
    # Of two fields of one modality, the last one is used, as in training.
    fields = {FIELD_MODALITY[field]: field for field in sample.fields if field in FIELD_MODALITY}
    media = [_medium(sample, fields[modality], view) for modality in MODALITIES if modality in fields]
    problems = [] if media else ["has no image, audio, video or points field"]
    classes: list[str] = []
    try:
        classes = [class_names[label] if class_names else str(label) for label in rules.classes(sample)]
    except SampleError as error:
        problems.append(BadSample.of(sample, error).reason)
    return Card(sample.shard, sample.key, classes, media, problems)


def _medium(sample: RawSample, field: str, view: Decode) -> Medium:
    alone = RawSample(sample.shard, sample.key, {field: sample.fields[field]})
    try:
        seen = view(alone, {}, evaluation_randomness(sample.key), DEFAULT_LIMITS)
    except SampleError as error:
        return Medium(field, {}, {}, BadSample.of(sample, error).reason)
    arrays = {name: array for name, array in seen.items() if name in MODALITIES}
    return Medium(
        field, arrays, {name: float(array) for name, array in seen.items() if name not in MODALITIES}
    )
