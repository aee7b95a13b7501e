"""Options of a source and of reading it: their defaults, their ranges and the errors that name them."""

from typing import Any

import pytest

from perceiver_dist.errors import UserError
from pipelines.shards.source import DataConfig, SourceConfig


def source(**changes: Any) -> SourceConfig:
    """Return a valid source with changes."""
    fields: dict[str, Any] = {
        "name": "speech",
        "train_shards": "x.tar",
        "modalities": ["audio"],
        "num_classes": 3,
    }
    return SourceConfig(**{**fields, **changes})


def test_source_needs_a_name_shards_modalities_and_classes_only() -> None:
    assert (source().task, source().label, source().weight) == ("softmax", "cls", 1.0)


@pytest.mark.parametrize("label", ["cls", "txt", "json.label", "json.a.b"])
def test_label_is_a_field_or_an_entry_of_json(label: str) -> None:
    assert source(label=label).label == label


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "a/b"},
            "source 'a/b': a name must be letters, digits and underscores, not starting with a digit",
        ),
        (
            {"modalities": ["audio", "smell"]},
            "source 'speech': modality 'smell' is unknown; choose from image, audio, video, points",
        ),
        ({"modalities": []}, "source 'speech': modalities is []; name each wanted modality once"),
        (
            {"modalities": ["audio", "audio"]},
            "source 'speech': modalities is ['audio', 'audio']; name each wanted modality once",
        ),
        ({"num_classes": 1}, "source 'speech': num_classes is 1, must be at least 2"),
        (
            {"class_names": ["yes", "no"]},
            "source 'speech': class_names has 2 names for 3 classes; name all or none",
        ),
        ({"balance": 1.5}, "source 'speech': balance is 1.5, must be between 0 and 1"),
        (
            {"balance": 0.5, "task": "multilabel"},
            "source 'speech': balance is 0.5, but its task is multilabel and its label 'cls'; it needs softmax and a "
            "field that holds the class number alone: set it to 0",
        ),
        (
            {"balance": 1.0, "label": "json.label"},
            "source 'speech': balance is 1.0, but its task is softmax and its label 'json.label'; it needs softmax and "
            "a field that holds the class number alone: set it to 0",
        ),
        ({"label": "json"}, "source 'speech': label is 'json'; name the entry, as in json.label"),
        ({"label": "json."}, "source 'speech': label is 'json.'; name the entry, as in json.label"),
    ],
)
def test_mistake_in_a_source_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        source(**changes)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["chunk_size", "units_per_task", "tasks", "prefetch_units"])
def test_number_below_one_is_rejected(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    with pytest.raises(UserError, match=rf"^data\.{name} is 0, must be at least 1$"):
        DataConfig(**options)
