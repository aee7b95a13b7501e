"""Check of one sample: tar members, label and media, with the reasons that training would report."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from perceiver_dist.errors import UserError
from perceiver_dist.modalities import AudioInput, ImageInput, ModalityInput, PointCloudInput, VideoInput
from perceiver_dist.range_checks import check_range
from pipelines.augment.randomness import evaluation_randomness
from pipelines.decode.sample import Decode, label_classes
from pipelines.errors import SampleError
from pipelines.fields import FIELD_MODALITY
from pipelines.limits import DEFAULT_LIMITS
from pipelines.shards.sample_reader import RawSample
from pipelines.units.unit_maker import BadSample

_INPUTS: dict[str, ModalityInput] = {
    "image": ImageInput(),
    "audio": AudioInput(),
    "video": VideoInput(),
    "points": PointCloudInput(),
}
_LAST_WINDOW = 1.0
"""Position of the window: the end of audio and video is decoded, because a truncated file lacks it."""


@dataclass(frozen=True)
class LabelRules:
    """Requirements of a label, as in the configuration of a source.

    Attributes:
        label: Field or entry of the label: "cls", or "json.KEY".
        task: softmax: exactly one class. multilabel: any number.
        num_classes: Number of classes; None if unknown: any number from 0 is then valid.
    """

    label: str = "cls"
    task: Literal["softmax", "multilabel"] = "softmax"
    num_classes: int | None = None

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            UserError: The label names no field or entry, or there are fewer than two classes.
        """
        if self.label in ("", "json", "json."):
            raise UserError(
                f"--label is '{self.label}'; name a field, as in cls, or an entry, as in json.label"
            )
        check_range(self, "--", ["num_classes"], at_least=2)

    @property
    def field(self) -> str:
        """Name of the field that holds the label."""
        return self.label.partition(".")[0]

    @property
    def wanted_fields(self) -> frozenset[str]:
        """Names of the label's field and of all decodable fields."""
        return frozenset({self.field, *FIELD_MODALITY})

    def classes(self, sample: RawSample) -> list[int]:
        """Return the classes of a sample, sorted and without duplicates.

        Args:
            sample: The bytes of its fields, including the label's.

        Raises:
            SampleError: The label is invalid.
        """
        return sorted(set(label_classes(sample, self.label, self.task, self.num_classes)))


def find_bad_samples(samples: Iterable[RawSample], rules: LabelRules, decode: Decode) -> list[BadSample]:
    """Check samples, and return the bad ones.

    Args:
        samples: The samples, with the fields in `LabelRules.wanted_fields`.
        rules: Requirements of a label.
        decode: The decoder to check samples with.

    Returns:
        A record of each bad sample, in the order of the samples.
    """
    bad = []
    for sample in samples:
        try:
            _check(sample, rules, decode)
        except SampleError as error:
            bad.append(BadSample.of(sample, error))
    return bad


def _check(sample: RawSample, rules: LabelRules, decode: Decode) -> None:
    """Check a sample as training does.

    Raises:
        SampleError: The sample is bad.
    """
    if sample.problem:
        raise SampleError(sample.problem)
    rules.classes(sample)
    modalities = {FIELD_MODALITY[field] for field in sample.fields if field in FIELD_MODALITY}
    if not modalities:
        # Training would accept it, because a sample may lack any modality; but there is nothing to learn from it.
        raise SampleError("has no image, audio, video or points field")
    if "video" in modalities:
        # The audio track of a video, where a sample has no audio file.
        modalities.add("audio")
    inputs = {modality: _INPUTS[modality] for modality in sorted(modalities)}
    decode(sample, inputs, evaluation_randomness(sample.key, _LAST_WINDOW), DEFAULT_LIMITS)
