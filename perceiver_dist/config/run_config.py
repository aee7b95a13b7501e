"""The one configuration tree of a training run: defaults, meaning, unit and reason of every option.

Command line, YAML files and `--help` are made from these dataclasses (see `perceiver_dist.config.command_line`); the
reference page docs/configuration.md is generated from them. `model` is documented in
perceiver_dist/model/model_config.py, `sources` and `data` in pipelines/shards/source.py.
"""

from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any, Literal

from perceiver_dist.config.credentials import refuse_credentials
from perceiver_dist.errors import UserError
from perceiver_dist.modalities import ModalityInput
from perceiver_dist.model.model_config import ModelConfig
from pipelines.shards.source import DataConfig, SourceConfig
from pipelines.storage.files import absolute_uri, join

ModelPart = Literal["latents", "encodings", "positions", "cross_attends", "latent_blocks", "decoder"]


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, and a learning rate that is a function of the step; biases, norms and latents are not decayed.

    Attributes:
        optimizer: adamw; or lamb, the papers' choice for large batches, which takes a larger learning rate.
        learning_rate: Highest learning rate, reached after the warm-up. 2e-3 suits the small default model;
            larger models need less.
        warmup_steps: Optimizer steps in which the learning rate rises from 0 in equal parts.
        schedule: What follows the warm-up. cosine: half a cosine down to final_fraction, after flat_fraction. steps: a
            multiplication by decay_factor at each of decay_at. constant: nothing.
        final_fraction: With cosine, the learning rate at the last step, as a fraction of the highest. 0 decays to
            nothing, which gives the best final weights of a run whose length is fixed.
        flat_fraction: With cosine, the fraction of the run's steps before the decay begins; 0.5 in Perceiver IO's
            recipe for ImageNet. 0 decays from the end of the warm-up on.
        decay_at: With steps, fractions of the run's steps; by default those of epochs 84, 102 and 114 of 120, as the
            paper's model for ImageNet was trained.
        decay_factor: With steps, what the learning rate is multiplied by; the paper's value.
        weight_decay: Decoupled weight decay. 0.1 is what the authors used in Perceiver IO.
        frozen: Parts of the model that stay as they are: latents, encodings (of modalities), positions (learned ones),
            cross_attends, latent_blocks, decoder. For fine-tuning; heads always learn.
        beta1: Decay rate of the mean of the gradient per step; AdamW's usual value.
        beta2: Decay rate of the mean of its square per step; below the usual 0.999, for short runs.
        clip_norm: Largest global L2 norm of the gradient, 0 for no clipping; 10 is the authors' value, 1 is safer
            for small batches.
    """

    optimizer: Literal["adamw", "lamb"] = "adamw"
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    final_fraction: float = 0.0
    flat_fraction: float = 0.0
    decay_at: tuple[float, ...] = (0.7, 0.85, 0.95)
    decay_factor: float = 0.1
    weight_decay: float = 0.1
    frozen: list[ModelPart] = field(default_factory=list)
    beta1: float = 0.9
    beta2: float = 0.99
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UserError: A number is outside its range.
        """
        if not self.learning_rate > 0:
            raise UserError(f"optim.learning_rate is {self.learning_rate}, must be above 0")
        for name in ("warmup_steps", "weight_decay", "clip_norm"):
            if getattr(self, name) < 0:
                raise UserError(f"optim.{name} is {getattr(self, name)}, must not be negative")
        for name in ("final_fraction", "flat_fraction", "decay_factor", "beta1", "beta2"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"optim.{name} is {getattr(self, name)}, must be between 0 and 1")
        if not all(0 <= fraction <= 1 for fraction in self.decay_at):
            raise UserError(f"optim.decay_at is {[*self.decay_at]}, must be fractions between 0 and 1")


@dataclass(frozen=True)
class WorkerRange:
    """A number of workers that changes while a run lasts, as nodes come and go.

    Attributes:
        min: Fewest workers that training goes on with; with fewer it waits.
        max: Most workers, at most `train.lanes`; as many are asked of a cluster that can grow.
    """

    min: int
    max: int


@dataclass(frozen=True)
class TrainConfig:
    """How long, on how many workers, and how often to look.

    Attributes:
        steps: Optimizer steps of the whole run; every step learns from one source.
        micro_batch: Samples of one unit, which a rank processes at once. Limited by memory.
        lanes: Units per optimizer step, over all ranks: the global batch is lanes * micro_batch. The number of
            workers must divide it; a rank with several lanes accumulates gradients. Keep it when you change the
            number of workers, and the samples of every step stay the same.
        num_workers: Training processes, one per GPU where there are GPUs. A number, or {min: A, max: B}: the run
            goes on with fewer when nodes are lost and with more when they come, from the newest checkpoint.
        device: cuda trains on one GPU per worker, cpu on processor cores; auto takes cuda where workers have GPUs.
        cpus_per_worker: CPUs that Ray reserves for each worker; what is left reads and decodes.
        gpus_per_worker: GPUs that Ray reserves for each worker, 0 or 1; null for 1 where workers train on cuda, else
            0. Set it to 1 on a cluster that grows, whose first GPU comes when somebody asks for it.
        precision: bf16 runs matrix products in bfloat16 (autocast); parameters, gradients and optimizer state stay
            in fp32 either way. fp32 is the default because it is reproducible bit for bit on CPU.
        stop_at: Optimizer step after which the run ends for now; null for its last. `steps` still decides the
            learning rate, so that the run can go on later as if it had not ended.
        start_from: Path or URI of another run's checkpoint to begin from, with its weights, optimizer state and step;
            null begins with new weights at step 0. A run that has checkpoints of its own goes on from those.
        fine_tune: Path or URI of a trained model (a run, a checkpoint, or an exported folder) whose weights a new run
            begins with, at step 0. Heads, and modalities that it did not have, begin anew. Without effect on a run that
            has a checkpoint, or `start_from`.
        seed: Seed of the initial weights and of the order of samples.
        log_every: Optimizer steps between logged losses.
        eval_every: Optimizer steps between evaluations on the held-out shards; 0 for one at the end only.
        checkpoint_every: Optimizer steps between checkpoints; there is always one at the end.
        keep_checkpoints: Newest checkpoints kept; 2 so that there is another if the newest is found damaged.
        max_failures: Times in a row that workers may be lost before the next checkpoint is written; they are replaced
            each time. A checkpoint starts the count anew, so a long run may lose any number.
        max_skipped_steps: Optimizer steps that may be skipped because their gradient is not finite before the run
            stops. A few are usual in long runs in bf16; every one is told with its units.
    """

    steps: int = 1000
    micro_batch: int = 32
    lanes: int = 2
    num_workers: int | WorkerRange = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpus_per_worker: float = 1.0
    gpus_per_worker: Literal[0, 1] | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    stop_at: int | None = None
    start_from: str | None = None
    fine_tune: str | None = None
    seed: int = 0
    log_every: int = 10
    eval_every: int = 0
    checkpoint_every: int = 250
    keep_checkpoints: int = 2
    max_failures: int = 5
    max_skipped_steps: int = 10

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UserError: A number is outside its range, or the number of workers does not divide the lanes.
        """
        positive = (
            "steps",
            "micro_batch",
            "lanes",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "max_skipped_steps",
        )
        for name in positive:
            if getattr(self, name) < 1:
                raise UserError(f"train.{name} is {getattr(self, name)}, must be at least 1")
        for name in ("eval_every", "max_failures", "seed", "cpus_per_worker"):
            if getattr(self, name) < 0:
                raise UserError(f"train.{name} is {getattr(self, name)}, must not be negative")
        if self.stop_at is not None and not 1 <= self.stop_at <= self.steps:
            raise UserError(
                f"train.stop_at is {self.stop_at}, must be between 1 and train.steps {self.steps}, or null"
            )
        if self.device == "cuda" and self.gpus_per_worker == 0:
            raise UserError("train.device is cuda and train.gpus_per_worker 0; set it to 1 or leave it out")
        self._check_workers()

    @property
    def min_workers(self) -> int:
        """Fewest workers that train."""
        return self.num_workers.min if isinstance(self.num_workers, WorkerRange) else self.num_workers

    @property
    def max_workers(self) -> int:
        """Most workers that train."""
        return self.num_workers.max if isinstance(self.num_workers, WorkerRange) else self.num_workers

    def _check_workers(self) -> None:
        if isinstance(self.num_workers, WorkerRange):
            if not 1 <= self.num_workers.min <= self.num_workers.max <= self.lanes:
                raise UserError(
                    f"train.num_workers is {self.num_workers.min} to {self.num_workers.max}; min must be at least 1, "
                    f"max at least min and at most train.lanes {self.lanes}, so that every worker has something to do"
                )
            return
        if self.num_workers < 1:
            raise UserError(f"train.num_workers is {self.num_workers}, must be at least 1")
        if self.lanes % self.num_workers:
            divisors = [n for n in range(1, self.lanes + 1) if self.lanes % n == 0]
            raise UserError(
                f"train.num_workers is {self.num_workers}, which does not divide train.lanes {self.lanes}; "
                f"choose one of {divisors} workers or other lanes"
            )


@dataclass(frozen=True)
class DeepSpeedConfig:
    """What DeepSpeed partitions; batch sizes, precision and clipping are derived from `train` and `optim`.

    Attributes:
        zero_stage: 0 partitions nothing over the ranks, 1 the optimizer state, 2 gradients too, 3 parameters too.
            2 costs no more communication than 0 and saves most of the memory.
        overrides: Entries merged last into DeepSpeed's own configuration, for experts.
    """

    zero_stage: Literal[0, 1, 2, 3] = 2
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrackingConfig:
    """Where MLflow records the run.

    Attributes:
        uri: MLflow tracking URI; null for a SQLite file in storage.path, which serves one machine.
        experiment: MLflow experiment that the run belongs to.
        samples: Write the keys of every step's samples to samples.jsonl in the run's folder, to audit the order;
            false because it grows with the run.
    """

    uri: str | None = None
    experiment: str = "perceiver"
    samples: bool = False


@dataclass(frozen=True)
class StorageConfig:
    """Where runs are kept.

    Attributes:
        path: Folder or URI (s3://, gs://) that every node can reach; each run has a folder in it.
        run_name: Name of the run's folder. Starting a name again goes on from its last checkpoint; null makes a new
            name from the time.
    """

    path: str = "runs"
    run_name: str | None = None

    def __post_init__(self) -> None:
        """Check the name.

        Raises:
            UserError: The name is not fit for a folder.
        """
        if self.run_name is not None and (not self.run_name or set(self.run_name) & set("/\\: ")):
            raise UserError(
                f"storage.run_name is '{self.run_name}'; use a name without slashes, colons and spaces"
            )


@dataclass(frozen=True)
class RunConfig:
    """All options of a training run.

    Attributes:
        model: The Perceiver and its inputs.
        sources: What to learn from; each source is one task.
        optim: Optimizer and learning rate.
        train: Steps, batches, workers, evaluation and checkpoints.
        deepspeed: Partitioning of the training state.
        data: Reading of shards.
        tracking: MLflow.
        storage: Folder of the runs.
    """

    model: ModelConfig
    sources: list[SourceConfig]
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)

    def __post_init__(self) -> None:
        """Check what concerns several parts.

        Raises:
            UserError: A password or key in an option, no source, two sources with one name, a weight that is not
                positive and finite, a source with a modality that the model has no input for, or masks without a
                spectrogram.
        """
        refuse_credentials(asdict(self))
        if not self.sources:
            raise UserError("sources is empty: name at least one source to train on")
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise UserError(
                    f"sources: the name '{name}' is used {names.count(name)} times; names must differ"
                )
        for source in self.sources:
            if not 0 < source.weight < inf:
                raise UserError(
                    f"source '{source.name}': weight is {source.weight}, must be above 0 and finite"
                )
            for modality in source.modalities:
                if getattr(self.model, modality) is None:
                    raise UserError(
                        f"source '{source.name}': has modality {modality}, but model.{modality} is null; "
                        f"set model.{modality}.* to its sizes"
                    )
            audio = self.model.audio
            if source.augment.masks and ("audio" not in source.modalities or not (audio and audio.mel_bands)):
                raise UserError(
                    f"source '{source.name}': augment.masks is {source.augment.masks}, but it has no spectrograms; "
                    "they need the modality audio and model.audio.mel_bands"
                )

    @property
    def last_step(self) -> int:
        """Optimizer step after which the run ends."""
        return self.train.stop_at or self.train.steps

    @property
    def heads(self) -> dict[str, int]:
        """Number of classes by source name: the model's heads."""
        return {source.name: source.num_classes for source in self.sources}

    def inputs(self, source: SourceConfig) -> dict[str, ModalityInput]:
        """Return what each modality of a source is decoded to.

        Args:
            source: One of the sources.
        """
        return {modality: getattr(self.model, modality) for modality in source.modalities}

    @property
    def weights(self) -> dict[str, float]:
        """Share of the steps by source name."""
        return {source.name: source.weight for source in self.sources}

    @property
    def index_folder(self) -> str:
        """Absolute path or URI of the folder that shard indexes are kept in."""
        return absolute_uri(self.data.index_path or join(self.storage.path, "index"))
