"""Making a unit: read its samples, decode them to fixed shapes, stack them.

A unit is a mapping of arrays, all with the batch as first axis (B samples, the same for every unit of a source):

    unit                int64 (1,)                the unit's number
    keys                str (B,)                  shard and key of each sample; "" where padded
    real                bool (B,)                 False where an evaluation unit is padded
    label               int64 (B,) for softmax, uint8 (B, classes) for multilabel
    <modality>          integers, fp32 for points (B, *array_shape), zeros where missing
    <modality>_present  bool (B,)

It is a pure function of its arguments: where a random choice is made (the window in time, the points of a surface) it
is computed from the seed, the source, the unit and the row.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from perceiver_dist.modalities import AudioInput, ImageInput, ModalityInput, PointCloudInput, VideoInput
from pipelines.chance import Chance
from pipelines.decode import FIELD_MODALITY, decode_audio, decode_image, decode_points, decode_video
from pipelines.errors import SampleError
from pipelines.index import SourceIndex
from pipelines.permutation import hash64, uniform
from pipelines.plan import EvaluationPlan, TrainingPlan
from pipelines.reader import RawSample, read_samples
from pipelines.source import SourceConfig

Unit = dict[str, np.ndarray]


@dataclass(frozen=True)
class UnitMaker:
    """Everything that turns a unit's number into its arrays.

    Attributes:
        source: The source's configuration.
        inputs: What each of the source's modalities is decoded to.
        index: Where the samples lie.
        plan: Which samples are in which unit.
    """

    source: SourceConfig
    inputs: Mapping[str, ModalityInput]
    index: SourceIndex
    plan: TrainingPlan | EvaluationPlan

    def make(self, number: int) -> Unit:
        """Read and decode one unit.

        Args:
            number: The unit's number.

        Returns:
            The unit's arrays, as described at the top of this file.

        Raises:
            SampleError: A sample cannot be decoded or its label is missing or out of range.
            ShardError: A shard is gone or has changed.
        """
        raw = read_samples(self.index, self.plan.unit(number), self._wanted_fields())
        size = self.plan.unit_size
        unit = _empty_unit(number, size, self.source, self.inputs)
        for row, sample in enumerate(raw):
            unit["keys"][row] = f"{sample.shard}/{sample.key}"
            unit["real"][row] = True
            try:
                _set_label(unit["label"], row, sample, self.source)
                chance = self._chance(number, row, sample)
                for modality, array in _decode(sample, self.inputs, chance).items():
                    unit[modality][row] = array
                    unit[f"{modality}_present"][row] = True
            except SampleError as error:
                raise SampleError(f"source '{self.source.name}': {sample.name}: {error}") from error
        return unit

    def _wanted_fields(self) -> frozenset[str]:
        modalities = {*self.inputs, *({"video"} if "audio" in self.inputs else set())}
        label = self.source.label.partition(".")[0]
        return frozenset({label, *(field for field, of in FIELD_MODALITY.items() if of in modalities)})

    def _chance(self, unit: int, row: int, sample: RawSample) -> Chance:
        if isinstance(self.plan, EvaluationPlan):
            # By key, so that a sample is the same in every evaluation, whatever batch it is in.
            return Chance(window=0.5, seed=hash64(sample.key), augment=False)
        place = (unit, row)
        return Chance(
            window=uniform(self.plan.seed, self.source.name, "window", *place),
            seed=hash64(self.plan.seed, self.source.name, "sample", *place),
            augment=True,
        )


def _empty_unit(number: int, size: int, source: SourceConfig, inputs: Mapping[str, ModalityInput]) -> Unit:
    multilabel = source.task == "multilabel"
    unit: Unit = {
        "unit": np.array([number], np.int64),
        "keys": np.full(size, "", object),
        "real": np.zeros(size, bool),
        "label": np.zeros((size, source.num_classes), np.uint8) if multilabel else np.zeros(size, np.int64),
    }
    for modality, spec in inputs.items():
        unit[modality] = np.zeros((size, *spec.array_shape), spec.array_dtype)
        unit[f"{modality}_present"] = np.zeros(size, bool)
    return unit


def _decode(sample: RawSample, inputs: Mapping[str, ModalityInput], chance: Chance) -> dict[str, np.ndarray]:
    """Decode the modalities that the sample has; what it lacks is left out."""
    fields = {FIELD_MODALITY[field]: field for field in sample.fields if field in FIELD_MODALITY}
    data = {modality: sample.fields[field] for modality, field in fields.items()}
    image, audio, video, points = (inputs.get(name) for name in ("image", "audio", "video", "points"))
    decoded: dict[str, np.ndarray | None] = {}
    if isinstance(image, ImageInput) and "image" in data:
        decoded["image"] = decode_image(data["image"], image)
    track = audio if isinstance(audio, AudioInput) and "audio" not in data else None
    frames = video if isinstance(video, VideoInput) else None
    if "video" in data and (frames or track):
        decoded["video"], decoded["audio"] = decode_video(data["video"], frames, track, chance.window)
    if isinstance(audio, AudioInput) and "audio" in data:
        decoded["audio"] = decode_audio(data["audio"], audio, chance.window)
    if isinstance(points, PointCloudInput) and "points" in data:
        decoded["points"] = decode_points(data["points"], fields["points"], points, chance)
    return {modality: array for modality, array in decoded.items() if array is not None}


def _set_label(labels: np.ndarray, row: int, sample: RawSample, source: SourceConfig) -> None:
    values = _label_values(sample, source.label)
    if source.task == "softmax" and len(values) != 1:
        raise SampleError(f"has {len(values)} labels {values}, a softmax source needs exactly one")
    for value in values:
        if not 0 <= value < source.num_classes:
            raise SampleError(
                f"label {value} is out of range 0 .. {source.num_classes - 1}; "
                "correct the sample or the source's num_classes"
            )
    if source.task == "softmax":
        labels[row] = values[0]
    else:
        labels[row, values] = 1


def _label_values(sample: RawSample, label: str) -> Sequence[int]:
    field, _, entry = label.partition(".")
    if field not in sample.fields:
        raise SampleError(f"has no label field '{field}'")
    text = sample.fields[field].decode("utf-8", errors="replace")
    try:
        content: Any = (
            json.loads(text)[entry] if entry else [int(part) for part in text.split(",") if part.strip()]
        )
        values = content if isinstance(content, list) else [content]
        if any(isinstance(value, bool) or not isinstance(value, int) for value in values):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SampleError(f"label field '{label}' holds {text[:40]!r}, expected whole numbers") from error
    return values
