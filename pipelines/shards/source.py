"""Configuration of data sources and of how they are read. The docstrings are also the help texts of the options."""

from dataclasses import dataclass, field
from typing import Literal

from perceiver_dist.errors import UserError
from perceiver_dist.modalities import MODALITIES
from perceiver_dist.range_checks import check_range
from pipelines.augment.augment_config import NO_AUGMENT, AugmentConfig
from pipelines.limits import DEFAULT_LIMITS, Limits


@dataclass(frozen=True)
class SourceConfig:
    """One data source: a set of shards with its modalities, one task and a weight.

    Attributes:
        name: Short name; letters, digits and underscores. It names the source's head in the model and its metrics,
            which are logged as name/metric.
        train_shards: Training shards (tar files): path or URI with braces and globs, as in
            "s3://bucket/train-{000000..000099}.tar" or "data/train-*.tar". Several are joined by "::", or listed in a
            text file, as in "@shards.txt".
        eval_shards: Held-out shards to evaluate on, given like train_shards. Default "": no evaluation of this source.
        modalities: Modalities that the model sees: image, audio, video, points. Audio is read from the sample's audio
            file or, if it has none, from the audio track of its video. Any sample may lack any of them.
        num_classes: Number of classes. Labels are 0 to num_classes - 1.
        task: softmax: exactly one class per sample (the default). multilabel: any number of classes per sample.
        label: Field that holds the label. Default "cls", WebDataset's name for a number as text. "json.KEY" is an entry
            of the json field. For multilabel: a list of numbers (json), or numbers separated by commas (text).
        weight: Share of the optimizer steps, relative to the weights of the other sources. With equal weights, as by
            default (1.0), all sources get the same share, whatever their sizes.
        balance: How far training evens out classes of unequal sizes, 0 to 1: per epoch a class of n samples is drawn
            n^(1 - balance) * N^balance times, where N is the size of the largest class. 1 draws all classes equally
            often, 0.5 is usual for very unequal ones. Default 0: each sample once. Only for softmax, with the label in
            a field of its own. Evaluation takes every sample once.
        class_names: Names of the classes in figures and tables, in the order of the labels. Default: the numbers.
        modality_dropout: Probability, by modality, that training drops the modality from a sample, so that the model
            does not rely on it alone. {video: 0.3} is the paper's setting for AudioSet. A sample that would have no
            modality left keeps all. Evaluation drops none.
        augment: Data augmentation in training. Default: none.
    """

    name: str
    train_shards: str
    modalities: list[str]
    num_classes: int
    eval_shards: str = ""
    task: Literal["softmax", "multilabel"] = "softmax"
    label: str = "cls"
    weight: float = 1.0
    balance: float = 0.0
    class_names: list[str] = field(default_factory=list)
    modality_dropout: dict[str, float] = field(default_factory=dict)
    augment: AugmentConfig = NO_AUGMENT

    def __post_init__(self) -> None:
        """Check what can be checked without reading data.

        Raises:
            UserError: The name is not an identifier, a modality is unknown or named twice, the number of classes is
                below 2 or differs from the number of class names, modality dropout names a modality that the source
                does not have, MixUp or CutMix is set for a source that has more than images, the label is json
                without a key, or balance is set for labels that it cannot tell apart.
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
        if self.augment.speed and "video" in self.modalities:
            raise UserError(
                f"{where}: augment.speed is {self.augment.speed}, but modalities is {self.modalities}: sounds would no "
                "longer fit their frames; set it to 0"
            )
        check_range(self, f"{where}: ", ["balance"], at_least=0, at_most=1)
        if self.balance and (self.task != "softmax" or "." in self.label):
            raise UserError(
                f"{where}: balance is {self.balance}, but its task is {self.task} and its label '{self.label}'; it "
                "needs softmax and a field that holds the class number alone: set it to 0"
            )
        if self.label in ("json", "json."):
            raise UserError(f"{where}: label is '{self.label}'; name the entry, as in json.label")

    @property
    def shown_classes(self) -> list[str]:
        """Names of the classes for display; their numbers if they have no names."""
        return self.class_names or [str(number) for number in range(self.num_classes)]


@dataclass(frozen=True)
class DataConfig:
    """How samples are read, shuffled and prefetched.

    Attributes:
        chunk_size: Consecutive samples that are shuffled and read together. More means fewer storage requests and a
            coarser shuffle. The default, 4, needs a quarter of the requests of 1 and is far below the size of a usual
            micro-batch.
        units_per_task: Max units (micro-batches) that one Ray Data read task makes; it makes no more than 96 MiB of
            them, and fewer at the start of a run. With fewer, starting tasks takes a larger share of the time. Default
            256, which tiny samples reach: about a second's work.
        tasks: Read tasks that run at the same time, each on one CPU. auto (the default): as many as there are CPUs in
            the cluster that no worker has reserved, shared with other trainings; they rest when ranks need no more.
            A number: at most so many, for a machine that has other work to do.
        prefetch_units: Units (micro-batches) that each rank prefetches, in whole blocks. Default 4, enough to hide one
            slow sample.
        max_bad_fraction: Max fraction, 0 to 1, of a source's samples that may be bad: missing or wrong labels, damaged
            media. If more are bad, the run stops. Default 0.01: single bad samples are skipped, but more than 1 in 100
            mean that something is wrong with the data as a whole. Checked from 500 samples on.
        storage_seconds: Seconds for which requests to remote storage are retried while it fails or stalls, before the
            run ends. The default, 300, outlasts usual disturbances of an object store. A request without a response is
            abandoned after a fifth of it.
        limits: Upper bounds on one sample. A sample that exceeds one is bad.
        index_path: Folder (path or URI) of the shard indexes. Default null: "index" under storage.path.
    """

    chunk_size: int = 4
    units_per_task: int = 256
    tasks: int | Literal["auto"] = "auto"
    prefetch_units: int = 4
    max_bad_fraction: float = 0.01
    storage_seconds: float = 300.0
    limits: Limits = DEFAULT_LIMITS
    index_path: str | None = None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UserError: A number is too small, or the fraction is outside 0 to 1.
        """
        numbers = ["chunk_size", "units_per_task", "prefetch_units"]
        check_range(self, "data.", numbers + ["tasks"] * (self.tasks != "auto"), at_least=1)
        check_range(self, "data.", ["storage_seconds"], above=0)
        check_range(self, "data.", ["max_bad_fraction"], at_least=0, at_most=1)


DEFAULT_DATA = DataConfig()
