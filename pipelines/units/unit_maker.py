"""Maker of units: reads the samples of a unit, decodes them to fixed shapes and stacks them.

A unit (one micro-batch of one source) is a mapping of arrays. All but `unit` and `quarantined` have the batch as first
axis: B rows, the same number in every unit of a source, one sample per row.

    unit                int64 (1,)                number of the unit
    keys                str (B,)                  shard and key of each sample; "" where padded
    valid               bool (B,)                 False where an evaluation unit is padded or its sample is bad
    label               int64 (B,) for softmax, uint8 (B, classes) for multilabel
    <modality>          integers, fp32 for points (B, *array_shape), zeros where missing
    <modality>_present  bool (B,)                 False where the sample lacks the modality or it was dropped
    quarantined         str (bad, 3)              shard, key and reason of each bad sample

A bad sample affects its own row only. In training the row becomes a copy of the next good row of the same unit (the
first row follows the last). In evaluation, where no sample may count twice, the row is not valid.

A unit is a pure function of its number and of the fields of its `UnitMaker`. Random choices (the window in time, points
on a surface, crops, dropped modalities) are hashes of seed, source, unit and row. So a read task that Ray retries, a
resumed run and `--replay` get the same bytes.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from perceiver_dist.modalities import ModalityInput
from pipelines.augment.image_transform import ImageTransform
from pipelines.augment.randomness import SampleRandomness, evaluation_randomness
from pipelines.decode.sample import Decode, decode_sample, read_label
from pipelines.errors import SampleError
from pipelines.fields import FIELD_MODALITY
from pipelines.permutation import hash64, uniform
from pipelines.shards.sample_reader import RawSample, read_samples
from pipelines.shards.shard_index import SourceIndex
from pipelines.shards.source import DEFAULT_DATA, DataConfig, SourceConfig
from pipelines.units.plan import EvaluationPlan, TrainingPlan

Unit = dict[str, np.ndarray]
"""The arrays of a unit by name, as described at the top of this file."""

ArraySpec = tuple[tuple[int, ...], np.dtype[Any]]
"""Shape and type of an array."""

_MAX_REASON_LENGTH = 240
"""Characters. Decoders may quote a damaged file at length; two lines of a wide terminal are enough to identify it."""


class BadSample(NamedTuple):
    """A sample that could not be used: one record of the quarantine.

    Attributes:
        shard: Path or URI of the tar file.
        key: The sample's key within the shard.
        reason: Why it could not be used, in one line.
    """

    shard: str
    key: str
    reason: str

    @classmethod
    def of(cls, sample: RawSample, error: SampleError) -> Self:
        """Return the record of a sample and the error that made it bad.

        Args:
            sample: The sample.
            error: The error that decoding it raised.
        """
        return cls(sample.shard, sample.key, _one_line(str(error)))


@dataclass(frozen=True)
class UnitMaker:
    """Function from a unit's number to its arrays, with everything it needs. Pickled to the read tasks.

    Attributes:
        source: Configuration of the source.
        inputs: Shape and type that each modality of the source is decoded to.
        index: Byte ranges of the samples.
        plan: Sample numbers of each unit.
        data: Limits on one sample, and the deadline of storage requests.
        decode: Decodes the bytes of a sample to arrays.
        labelled: Whether labels are read. If not, samples need none and `label` is zeros.
    """

    source: SourceConfig
    inputs: Mapping[str, ModalityInput]
    index: SourceIndex
    plan: TrainingPlan | EvaluationPlan
    data: DataConfig = DEFAULT_DATA
    decode: Decode = decode_sample
    labelled: bool = True

    @property
    def arrays(self) -> dict[str, ArraySpec]:
        """Shape and type of each array of a unit, but for those of texts."""
        return unit_arrays(self.source, self.inputs, self.plan.unit_size)

    @property
    def unit_bytes(self) -> int:
        """Bytes of the arrays of a unit."""
        return unit_bytes(self.source, self.inputs, self.plan.unit_size)

    def make(self, number: int, memory: Unit | None = None) -> Unit:
        """Read, decode and stack the samples of one unit.

        Args:
            number: Number of the unit, from 0.
            memory: Arrays of the shapes and types of `arrays` to write to; None for new ones.

        Returns:
            The arrays of the unit, as described at the top of this file.

        Raises:
            SampleError: All samples of a training unit are bad.
            ShardError: A shard is missing, has changed, or cannot be read.
        """
        raw = read_samples(self.index, self.plan.unit(number), self._wanted_fields(), self.data)
        unit = self._empty_unit(number, memory)
        bad: dict[int, BadSample] = {}
        for row, sample in enumerate(raw):
            unit["keys"][row] = f"{sample.shard}/{sample.key}"
            try:
                self._fill_row(unit, row, sample)
            except SampleError as error:
                bad[row] = BadSample.of(sample, error)
        # After the rows, not before them: most are there, and zeros for all would be one more pass over the memory.
        for modality in self.inputs:
            unit[modality][~unit[f"{modality}_present"]] = 0
        if bad:
            unit["quarantined"] = np.array(list(bad.values()), object)
            if isinstance(self.plan, TrainingPlan):
                self._replace_rows(unit, bad)
        return unit

    def _empty_unit(self, number: int, memory: Unit | None) -> Unit:
        """Return a unit without samples. The arrays of the modalities are not initialised."""
        memory = memory or {name: np.empty(shape, dtype) for name, (shape, dtype) in self.arrays.items()}
        unit = memory | {
            "keys": np.full(self.plan.unit_size, "", object),
            "quarantined": np.empty((0, 3), object),
        }
        unit["unit"][0] = number
        for name in ("valid", "label", *(f"{modality}_present" for modality in self.inputs)):
            unit[name][...] = 0
        return unit

    def _fill_row(self, unit: Unit, row: int, sample: RawSample) -> None:
        """Write a sample to a row. If it fails, the row is left unchanged: all checks come before the first write.

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
            # Modality dropout left nothing of this sample: it keeps all its modalities.
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
        """Copy to each bad row the next good one. A unit without a good row stops the run.

        Raises:
            SampleError: All rows are bad.
        """
        size = self.plan.unit_size
        if len(bad) == size:
            # Likely one mistake for the whole source, such as a wrong label field: report the most common reason.
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
        """Return the names of the fields to read; for audio also the videos, whose audio track may be needed."""
        modalities = {*self.inputs, *({"video"} if "audio" in self.inputs else set())}
        label = {self.source.label.partition(".")[0]} if self.labelled else set()
        return frozenset({*label, *(field for field, of in FIELD_MODALITY.items() if of in modalities)})

    def _shown_inputs(self, unit: int, row: int) -> Mapping[str, ModalityInput]:
        """Return the inputs that modality dropout leaves of a row; all of them without it, and in evaluation."""
        if isinstance(self.plan, EvaluationPlan) or not self.source.modality_dropout:
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


def unit_arrays(source: SourceConfig, inputs: Mapping[str, ModalityInput], size: int) -> dict[str, ArraySpec]:
    """Return shape and type of each array of a unit, but for those of texts (`keys`, `quarantined`).

    Args:
        source: Configuration of the source.
        inputs: Shape and type that each of its modalities is decoded to.
        size: Samples per unit.
    """
    multilabel = source.task == "multilabel"
    arrays: dict[str, ArraySpec] = {
        "unit": ((1,), np.dtype(np.int64)),
        "valid": ((size,), np.dtype(bool)),
        "label": ((size, source.num_classes), np.dtype(np.uint8))
        if multilabel
        else ((size,), np.dtype(np.int64)),
    }
    for modality, spec in inputs.items():
        arrays[modality] = ((size, *spec.array_shape), np.dtype(spec.array_dtype))
        arrays[f"{modality}_present"] = ((size,), np.dtype(bool))
    return arrays


def unit_bytes(source: SourceConfig, inputs: Mapping[str, ModalityInput], size: int) -> int:
    """Return the bytes of the arrays of a unit.

    Args:
        source: Configuration of the source.
        inputs: Shape and type that each of its modalities is decoded to.
        size: Samples per unit.
    """
    return sum(
        math.prod(shape) * dtype.itemsize for shape, dtype in unit_arrays(source, inputs, size).values()
    )


def _one_line(reason: str) -> str:
    """Return a reason as one short, printable line; decoders may quote the bytes of a damaged file."""
    words = " ".join(reason.split())
    printable = "".join(letter if letter.isprintable() else "?" for letter in words)
    if len(printable) <= _MAX_REASON_LENGTH:
        return printable
    return printable[: _MAX_REASON_LENGTH - 3].rstrip() + "..."
