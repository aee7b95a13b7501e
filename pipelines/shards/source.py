"""A source: a set of shards with its modalities, one task, and a weight."""

from dataclasses import dataclass, field
from typing import Literal

from perceiver_dist.errors import UserError
from perceiver_dist.modalities import MODALITIES
from perceiver_dist.range_checks import check_range
from pipelines.augment.image_transform import NO_AUGMENT, AugmentConfig
from pipelines.limits import DEFAULT_LIMITS, Limits


@dataclass(frozen=True)
class SourceConfig:
    """One source of samples.

    Attributes:
        name: Short name; metrics are logged as name/metric, and the head of the task is called by it.
        train_shards: Tar shards to learn from: path or URI with braces and globs, as in
            "s3://bucket/train-{000000..000099}.tar" or "data/train-*.tar".
        eval_shards: Held-out shards; empty for none.
        modalities: What the model sees of a sample: image, audio, video, points. Audio is the sample's sound file or,
            where it has none, the sound track of its video. Any of them may be missing from any sample.
        num_classes: Number of classes; labels are 0 .. num_classes - 1.
        task: softmax: exactly one class per sample. multilabel: any number of classes per sample.
        label: Field that holds the label: "cls" (a number as text), or "json.KEY" for an entry of the json field.
            For multilabel a list of numbers (json) or numbers separated by commas (text).
        weight: Share of the optimizer steps, relative to the other sources' weights.
        class_names: Names of the classes for figures and tables; empty to show numbers.
        modality_dropout: In training, the probability with which a sample is shown without a modality, so that the
            model does not lean on it alone: {video: 0.3} is the paper's on AudioSet. A sample that would be left with
            nothing is shown whole. Evaluation leaves nothing out.
        augment: How images and clips are changed in training.
    """

    name: str
    train_shards: str
    modalities: list[str]
    num_classes: int
    eval_shards: str = ""
    task: Literal["softmax", "multilabel"] = "softmax"
    label: str = "cls"
    weight: float = 1.0
    class_names: list[str] = field(default_factory=list)
    modality_dropout: dict[str, float] = field(default_factory=dict)
    augment: AugmentConfig = NO_AUGMENT

    def __post_init__(self) -> None:
        """Check what can be checked without data.

        Raises:
            UserError: A modality is unknown or named twice, the name is not a plain word, the number of classes is
                below 2 or differs from the number of names, a modality that is dropped is not the source's, what is
                not images alone is to be mixed, or the label field is neither cls-like nor json.KEY.
        """
        where = f"source '{self.name}'"
        if not self.name.isidentifier():
            raise UserError(
                f"{where}: a name must be letters, digits and underscores, not starting with a digit"
            )
        unknown = [modality for modality in self.modalities if modality not in MODALITIES]
        if unknown:
            raise UserError(
                f"{where}: modality '{unknown[0]}' is unknown; choose from {', '.join(MODALITIES)}"
            )
        if not self.modalities or len(set(self.modalities)) < len(self.modalities):
            raise UserError(f"{where}: modalities is {self.modalities}; name each wanted modality once")
        check_range(self, f"{where}: ", ["num_classes"], at_least=2)
        if self.class_names and len(self.class_names) != self.num_classes:
            raise UserError(
                f"{where}: class_names has {len(self.class_names)} names for {self.num_classes} classes; "
                "name all or none"
            )
        for modality, probability in self.modality_dropout.items():
            if modality not in self.modalities or not 0 <= probability < 1:
                raise UserError(
                    f"{where}: modality_dropout has {modality}: {probability}; name modalities of the source "
                    f"({', '.join(self.modalities)}), with a probability from 0 to below 1"
                )
        if (self.augment.mixup or self.augment.cutmix) and self.modalities != ["image"]:
            raise UserError(
                f"{where}: augment.mixup and augment.cutmix mix images alone, modalities is {self.modalities}; "
                "set both to 0"
            )
        if self.label in ("json", "json."):
            raise UserError(f"{where}: label is '{self.label}'; name the entry, as in json.label")

    @property
    def shown_classes(self) -> list[str]:
        """Names of the classes, numbers where there are none."""
        return self.class_names or [str(number) for number in range(self.num_classes)]


@dataclass(frozen=True)
class DataConfig:
    """How samples are read.

    Attributes:
        chunk_size: Consecutive samples read together. More means fewer requests and a coarser shuffle;
            4 halves the requests of remote storage twice and is far below any micro-batch's diversity.
        units_per_task: Units that one Ray Data task makes. A task costs about 0.5 ms to plan and must be
            short beside the run; 16 keeps both.
        tasks: Read tasks at a time per source, each on one CPU. At least 1 CPU per source must be free of
            trainers, or nothing is ever read.
        prefetch_units: Units each rank holds ready; enough to ride out one slow sample.
        max_bad_fraction: Largest fraction, 0 to 1, of the samples met so far of a source that may be bad: missing or
            wrong labels, damaged media. Each costs itself only, but more than 1 in 100 means that something is
            wrong with the data as a whole. Looked at once 500 samples were met.
        storage_seconds: Seconds for which remote storage that fails or stalls is asked again before the run ends. 300
            outlasts the usual disturbance of an object store. A request without an answer is given up after a
            fifth of it.
        limits: What one sample may ask for before it counts as bad.
        index_path: Folder or URI in which shard indexes are kept; None: "index" under storage.path.
    """

    chunk_size: int = 4
    units_per_task: int = 16
    tasks: int = 1
    prefetch_units: int = 4
    max_bad_fraction: float = 0.01
    storage_seconds: float = 300.0
    limits: Limits = DEFAULT_LIMITS
    index_path: str | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: A number is too small, or the fraction is not one.
        """
        check_range(self, "data.", ["chunk_size", "units_per_task", "tasks", "prefetch_units"], at_least=1)
        check_range(self, "data.", ["storage_seconds"], above=0)
        check_range(self, "data.", ["max_bad_fraction"], at_least=0, at_most=1)


DEFAULT_DATA = DataConfig()
