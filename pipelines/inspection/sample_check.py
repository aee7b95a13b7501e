"""Whether a sample can be used: its tar members, its label and its media, with the reasons that training would give."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from perceiver_dist.errors import UserError
from perceiver_dist.modalities import AudioInput, ImageInput, ModalityInput, PointCloudInput, VideoInput
from perceiver_dist.range_checks import check_range
from pipelines.augment.randomness import evaluation_randomness
from pipelines.decode import FIELD_MODALITY
from pipelines.decode.sample import Decode, label_classes
from pipelines.errors import SampleError
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
"""Of a sound or clip the end is decoded, since that is what one that was cut off lacks."""


@dataclass(frozen=True)
class LabelRules:
    """What a label has to be; as in a source's configuration.

    Attributes:
        label: Where it stands: "cls", or "json.KEY".
        task: softmax: exactly one class. multilabel: any number.
        num_classes: Number of classes; None if it is not known, and any number from 0 will do.
    """

    label: str = "cls"
    task: Literal["softmax", "multilabel"] = "softmax"
    num_classes: int | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without data.

        Raises:
            UserError: The label names no entry, or there are fewer than two classes.
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
        """Names of the label's field and of all fields that can be decoded."""
        return frozenset({self.field, *FIELD_MODALITY})

    def classes(self, sample: RawSample) -> list[int]:
        """Return the classes of a sample.

        Args:
            sample: The bytes of its fields, the label's among them.

        Raises:
            SampleError: The label is not as it has to be.
        """
        return sorted(set(label_classes(sample, self.label, self.task, self.num_classes)))


def find_bad_samples(samples: Iterable[RawSample], rules: LabelRules, decode: Decode) -> list[BadSample]:
    """Check samples, and return those that cannot be used.

    Args:
        samples: The samples with the fields that the rules want.
        rules: What a label has to be.
        decode: Decodes a sample.

    Returns:
        A record of each that cannot be used, in the order of the samples.
    """
    bad = []
    for sample in samples:
        try:
            _check(sample, rules, decode)
        except SampleError as error:
            bad.append(BadSample.of(sample, error))
    return bad


def _check(sample: RawSample, rules: LabelRules, decode: Decode) -> None:
    """Look at a sample as training does.

    Raises:
        SampleError: It cannot be used.
    """
    if sample.problem:
        raise SampleError(sample.problem)
    rules.classes(sample)
    modalities = {FIELD_MODALITY[field] for field in sample.fields if field in FIELD_MODALITY}
    if not modalities:
        # Training would take it, for a model that may lack any modality; but nothing is to be learned from it.
        raise SampleError("has no image, audio, video or points field")
    if "video" in modalities:
        modalities.add("audio")
    inputs = {modality: _INPUTS[modality] for modality in sorted(modalities)}
    decode(sample, inputs, evaluation_randomness(sample.key, _LAST_WINDOW), DEFAULT_LIMITS)
