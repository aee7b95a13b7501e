"""Random samples of some shards, each decoded in a process of its own, as cards of a page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perceiver_dist.errors import UserError
from perceiver_dist.modalities import MODALITIES
from pipelines.augment.randomness import evaluation_randomness
from pipelines.decode import FIELD_MODALITY
from pipelines.decode.sample import Decode
from pipelines.decode.sandbox import sandboxed
from pipelines.errors import SampleError
from pipelines.inspection.headers import Measures
from pipelines.inspection.media_preview import preview_medium
from pipelines.inspection.sample_check import LabelRules
from pipelines.inspection.shard_access import draw_samples
from pipelines.limits import DEFAULT_LIMITS
from pipelines.shards.sample_reader import RawSample, read_samples
from pipelines.shards.shard_index import SourceIndex
from pipelines.storage.files import STORAGE_ERRORS, read_text, reason_of
from pipelines.units.unit_maker import BadSample


@dataclass(frozen=True)
class Medium:
    """One medium of a sample.

    Attributes:
        field: Name of its field.
        arrays: What is to be seen and heard, by modality; empty if it cannot be used.
        measures: What its header says.
        problem: Why it cannot be used; "" if it can.
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
        classes: Names of its classes, or their numbers.
        media: Its media.
        problems: What is wrong with the sample itself or its label.
    """

    shard: str
    key: str
    classes: list[str]
    media: list[Medium]
    problems: list[str]


def draw_cards(
    index: SourceIndex, rules: LabelRules, class_names: Sequence[str], count: int, seed: int
) -> list[Card]:
    """Draw samples, and decode them for a person.

    Args:
        index: The shards' index.
        rules: What a label has to be.
        class_names: Names of the classes; empty for numbers.
        count: How many; all if there are not more.
        seed: Another seed draws others.

    Returns:
        The cards, in the order in which they were drawn.

    Raises:
        ShardError: A shard is gone, has changed, or cannot be read.
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
    # Of two fields of one modality the last is taken, as in training.
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


def read_class_names(place: str) -> list[str]:
    """Read the names of the classes, as the converters write them.

    Args:
        place: Path or URI of a JSON file with a list of texts.

    Raises:
        UserError: There is no such file, or it holds something else.
    """
    try:
        text = read_text(place)
    except STORAGE_ERRORS as error:
        raise UserError(f"--classes is '{place}', which cannot be read ({reason_of(error)})") from error
    if text is None:
        raise UserError(
            f"--classes is '{place}': no such file; jobs/prepare_data.py writes classes.json beside shards"
        )
    try:
        names = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"--classes is '{place}', which is not JSON ({error}); expected a list of names"
        ) from error
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"--classes is '{place}', which holds {text[:40]!r}; expected a list of two names or more"
        )
    return names
