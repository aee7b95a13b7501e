"""Decoding of one sample: its label to class numbers, its modalities to arrays of fixed shape."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from perceiver_dist.modalities import AudioInput, ImageInput, ModalityInput, PointCloudInput, VideoInput
from pipelines.augment.randomness import SampleRandomness
from pipelines.augment.sound_transform import played_at, with_gain
from pipelines.decode import decode_audio, decode_image, decode_points, decode_video
from pipelines.errors import SampleError
from pipelines.fields import FIELD_MODALITY
from pipelines.limits import Limits
from pipelines.shards.sample_reader import RawSample
from pipelines.shards.source import SourceConfig

Arrays = dict[str, np.ndarray]
Decode = Callable[[RawSample, Mapping[str, ModalityInput], SampleRandomness, Limits], Arrays]


def decode_sample(
    sample: RawSample, inputs: Mapping[str, ModalityInput], randomness: SampleRandomness, limits: Limits
) -> Arrays:
    """Decode the modalities that a sample has.

    Args:
        sample: The bytes of its fields.
        inputs: Shape and type that each modality is decoded to.
        randomness: The random choices: the position of a window in time, points on a surface, a crop.
        limits: Bounds on what the sample may claim.

    Returns:
        Modality -> array of the input's shape and type; modalities that the sample lacks are left out.

    Raises:
        SampleError: A field cannot be decoded.
    """
    # Of two fields of one modality, the one that comes last in the tar is used.
    fields = {FIELD_MODALITY[field]: field for field in sample.fields if field in FIELD_MODALITY}
    data = {modality: sample.fields[field] for modality, field in fields.items()}
    image, audio, video, points = (inputs.get(name) for name in ("image", "audio", "video", "points"))
    augment, seed = randomness.transform.augment, randomness.transform.seed
    decoded: dict[str, np.ndarray | None] = {}
    if isinstance(image, ImageInput) and "image" in data:
        decoded["image"] = decode_image(data["image"], image, limits, randomness.transform)
    # An audio file takes precedence over the audio track of a video.
    heard = played_at(audio, augment, seed) if isinstance(audio, AudioInput) else None
    track = heard if "audio" not in data else None
    frames = video if isinstance(video, VideoInput) else None
    if "video" in data and (frames or track):
        decoded["video"], decoded["audio"] = decode_video(
            data["video"], frames, track, randomness.window, limits, randomness.transform
        )
    if heard and "audio" in data:
        decoded["audio"] = decode_audio(data["audio"], heard, randomness.window, limits)
    if (sound := decoded.get("audio")) is not None:
        decoded["audio"] = with_gain(sound, augment, seed)
    if isinstance(points, PointCloudInput) and "points" in data:
        decoded["points"] = decode_points(data["points"], fields["points"], points, randomness)
    return {modality: array for modality, array in decoded.items() if array is not None}


def read_label(sample: RawSample, source: SourceConfig) -> np.ndarray:
    """Return a sample's label.

    Args:
        sample: The bytes of its fields, including the label's.
        source: Names the label's field, the task, and the number of classes.

    Returns:
        int64 () for softmax, uint8 (classes,) of zeros and ones for multilabel.

    Raises:
        SampleError: The label is missing, not integers, out of range, or for softmax not exactly one class.
    """
    classes = label_classes(sample, source.label, source.task, source.num_classes)
    if source.task == "softmax":
        return np.array(classes[0], np.int64)
    label = np.zeros(source.num_classes, np.uint8)
    label[list(classes)] = 1
    return label


def label_classes(
    sample: RawSample, label: str, task: Literal["softmax", "multilabel"], num_classes: int | None
) -> Sequence[int]:
    """Return the class numbers in a sample's label.

    Args:
        sample: The bytes of its fields, including the label's.
        label: Field or entry of the label, as in the configuration of a source.
        task: softmax (exactly one class) or multilabel.
        num_classes: Number of classes; None if unknown.

    Returns:
        The classes in the order of the label, possibly with duplicates.

    Raises:
        SampleError: The label is missing, not integers, out of range, or for softmax not exactly one class.
    """
    values = _label_values(sample, label)
    if task == "softmax" and len(values) != 1:
        raise SampleError(f"has {len(values)} labels {values}, a softmax source needs exactly one")
    for value in values:
        if num_classes is not None and not 0 <= value < num_classes:
            raise SampleError(
                f"label {value} is out of range 0 .. {num_classes - 1}; "
                "correct the sample or the source's num_classes"
            )
        if value < 0:
            raise SampleError(f"label {value} is below 0; classes are numbered from 0")
    return values


def _label_values(sample: RawSample, label: str) -> Sequence[int]:
    field, _, entry = label.partition(".")
    if field not in sample.fields:
        found = sorted({*sample.fields, *sample.unread})
        raise SampleError(
            f"has no label field '{field}', only {', '.join(found) or 'no field'}; a field begins after the first dot "
            "of a file's name"
        )
    text = sample.fields[field].decode("utf-8", errors="replace")
    try:
        content: Any = (
            json.loads(text)[entry]
            if entry
            else [_parse_number(part.strip()) for part in text.split(",") if part.strip()]
        )
        values = content if isinstance(content, list) else [content]
        return [_whole_number(value) for value in values]
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # RecursionError: deeply nested JSON.
        raise SampleError(f"label field '{label}' holds {text[:40]!r}, expected whole numbers") from error


def _parse_number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _whole_number(value: Any) -> int:
    """Return a class number. 1.0 is one, too: table libraries turn whole numbers into floats, and write them so.

    Raises:
        TypeError: It is not a whole number.
    """
    # bool is a subclass of int, but JSON's true and false are no class numbers.
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise TypeError
    return int(value)
