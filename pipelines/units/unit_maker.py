"""Making a unit: read its samples, decode them to fixed shapes, stack them.

A unit is a mapping of arrays, all but `unit` and `quarantined` with the batch as first axis (B samples, the same for
every unit of a source):

    unit                int64 (1,)                the unit's number
    keys                str (B,)                  shard and key of each sample; "" where padded
    valid               bool (B,)                 False where an evaluation unit is padded or a sample of it is bad
    label               int64 (B,) for softmax, uint8 (B, classes) for multilabel
    <modality>          integers, fp32 for points (B, *array_shape), zeros where missing
    <modality>_present  bool (B,)
    quarantined         str (bad, 3)              shard, key and reason of each sample that could not be used

A bad sample costs itself only. In training its row takes everything from the next good row of the same unit, the
first row being the one after the last; in evaluation, where no sample may count twice, its row is not valid.

A unit is a pure function of its arguments: where a random choice is made (the window in time, the points of a
surface, a crop, a modality that is dropped) it is computed from the seed, the source, the unit and the row.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from perceiver_dist.modalities import ModalityInput
from pipelines.augment.image_transform import ImageTransform
from pipelines.augment.randomness import SampleRandomness, evaluation_randomness
from pipelines.decode import FIELD_MODALITY
from pipelines.decode.sample import Decode, decode_sample, read_label
from pipelines.errors import SampleError
from pipelines.permutation import hash64, uniform
from pipelines.shards.sample_reader import RawSample, read_samples
from pipelines.shards.shard_index import SourceIndex
from pipelines.shards.source import DEFAULT_DATA, DataConfig, SourceConfig
from pipelines.units.plan import EvaluationPlan, TrainingPlan

Unit = dict[str, np.ndarray]

_LONGEST_REASON = 240


class BadSample(NamedTuple):
    """A sample that could not be used.

    Attributes:
        shard: Path or URI of its tar file.
        key: Its key within the shard.
        reason: One line.
    """

    shard: str
    key: str
    reason: str

    @classmethod
    def of(cls, sample: RawSample, error: SampleError) -> Self:
        """Return the record of a sample and of what was found against it.

        Args:
            sample: The sample.
            error: What was found.
        """
        return cls(sample.shard, sample.key, _one_line(str(error)))


@dataclass(frozen=True)
class UnitMaker:
    """Everything that turns a unit's number into its arrays.

    Attributes:
        source: The source's configuration.
        inputs: What each of the source's modalities is decoded to.
        index: Where the samples lie.
        plan: Which samples are in which unit.
        data: What one sample may ask for, and how long storage is asked.
        decode: What turns a sample's bytes into arrays.
        labelled: Whether samples must have a label; without, `label` is zeros.
    """

    source: SourceConfig
    inputs: Mapping[str, ModalityInput]
    index: SourceIndex
    plan: TrainingPlan | EvaluationPlan
    data: DataConfig = DEFAULT_DATA
    decode: Decode = decode_sample
    labelled: bool = True

    def make(self, number: int) -> Unit:
        """Read and decode one unit.

        Args:
            number: The unit's number.

        Returns:
            The unit's arrays, as described at the top of this file.

        Raises:
            SampleError: Not one sample of a training unit can be used.
            ShardError: A shard is gone, has changed, or cannot be read.
        """
        raw = read_samples(self.index, self.plan.unit(number), self._wanted_fields(), self.data)
        unit = _empty_unit(number, self.plan.unit_size, self.source, self.inputs)
        bad: dict[int, BadSample] = {}
        for row, sample in enumerate(raw):
            unit["keys"][row] = f"{sample.shard}/{sample.key}"
            try:
                self._fill_row(unit, row, sample)
            except SampleError as error:
                bad[row] = BadSample.of(sample, error)
        if bad:
            unit["quarantined"] = np.array(list(bad.values()), object)
            if isinstance(self.plan, TrainingPlan):
                self._replace_rows(unit, bad)
        return unit

    def _fill_row(self, unit: Unit, row: int, sample: RawSample) -> None:
        """Write a sample into a row, or raise and leave the row as it is.

        Raises:
            SampleError: The sample cannot be used.
        """
        if sample.problem:
            raise SampleError(sample.problem)
        label = read_label(sample, self.source) if self.labelled else None
        randomness = self._randomness(int(unit["unit"][0]), row, sample)
        shown = self._shown_inputs(int(unit["unit"][0]), row)
        arrays = self.decode(sample, shown, randomness, self.data.limits)
        if not arrays and len(shown) < len(self.inputs):
            arrays = self.decode(sample, self.inputs, randomness, self.data.limits)
        for modality, array in arrays.items():
            expected = unit[modality][row]
            if (array.shape, array.dtype) != (expected.shape, expected.dtype):
                raise SampleError(
                    f"{modality} was decoded to {array.dtype} {array.shape}, "
                    f"expected {expected.dtype} {expected.shape}"
                )
        for modality, array in arrays.items():
            unit[modality][row] = array
            unit[f"{modality}_present"][row] = True
        if label is not None:
            unit["label"][row] = label
        unit["valid"][row] = True

    def _replace_rows(self, unit: Unit, bad: Mapping[int, BadSample]) -> None:
        size = self.plan.unit_size
        if len(bad) == size:
            [(reason, count)] = Counter(sample.reason for sample in bad.values()).most_common(1)
            first = next(sample for sample in bad.values() if sample.reason == reason)
            raise SampleError(
                f"source '{self.source.name}': all {size} samples of unit {unit['unit'][0]} are bad; {count} of them, "
                f"as sample '{first.key}' of shard {first.shard}: {reason}"
            )
        for row in bad:
            good = next(other % size for other in range(row + 1, row + size) if other % size not in bad)
            for name, array in unit.items():
                if name not in ("unit", "quarantined"):
                    array[row] = array[good]

    def _wanted_fields(self) -> frozenset[str]:
        modalities = {*self.inputs, *({"video"} if "audio" in self.inputs else set())}
        label = {self.source.label.partition(".")[0]} if self.labelled else set()
        return frozenset({*label, *(field for field, of in FIELD_MODALITY.items() if of in modalities)})

    def _shown_inputs(self, unit: int, row: int) -> Mapping[str, ModalityInput]:
        """Return the modalities that are not dropped."""
        if isinstance(self.plan, EvaluationPlan):
            return self.inputs
        dropout, place = self.source.modality_dropout, (self.source.name, "dropout", unit, row)
        return {
            modality: spec
            for modality, spec in self.inputs.items()
            if uniform(self.plan.seed, *place, modality) >= dropout.get(modality, 0.0)
        }

    def _randomness(self, unit: int, row: int, sample: RawSample) -> SampleRandomness:
        if isinstance(self.plan, EvaluationPlan):
            return evaluation_randomness(sample.key, self.plan.window(unit))
        place = (unit, row)
        seed = hash64(self.plan.seed, self.source.name, "sample", *place)
        return SampleRandomness(
            window=uniform(self.plan.seed, self.source.name, "window", *place),
            seed=seed,
            augment=True,
            transform=ImageTransform(self.source.augment, seed),
        )


def _empty_unit(number: int, size: int, source: SourceConfig, inputs: Mapping[str, ModalityInput]) -> Unit:
    multilabel = source.task == "multilabel"
    unit: Unit = {
        "unit": np.array([number], np.int64),
        "keys": np.full(size, "", object),
        "valid": np.zeros(size, bool),
        "label": np.zeros((size, source.num_classes), np.uint8) if multilabel else np.zeros(size, np.int64),
        "quarantined": np.empty((0, 3), object),
    }
    for modality, spec in inputs.items():
        unit[modality] = np.zeros((size, *spec.array_shape), spec.array_dtype)
        unit[f"{modality}_present"] = np.zeros(size, bool)
    return unit


def _one_line(reason: str) -> str:
    """Make a reason fit for a line of a log, whatever a damaged file made a decoder say."""
    words = " ".join(reason.split())
    printable = "".join(letter if letter.isprintable() else "?" for letter in words)
    return (
        printable if len(printable) <= _LONGEST_REASON else printable[: _LONGEST_REASON - 3].rstrip() + "..."
    )
