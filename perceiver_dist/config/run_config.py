"""Configuration tree of a training run: type, default, meaning and unit of every option, and why that default.

The command line, YAML files and `--help` are generated from these dataclasses (see
`perceiver_dist.config.command_line`), and so is docs/configuration.md. The options of `model` are in
perceiver_dist/model/model_config.py, those of `optim` in optim_config.py beside this file, those of `sources` and
`data` in pipelines/shards/source.py.
"""

from dataclasses import asdict, dataclass, field, replace
from math import inf
from typing import Any, Literal

from perceiver_dist.config.best_metric import check_best_metric
from perceiver_dist.config.credentials import refuse_credentials
from perceiver_dist.config.optim_config import OptimConfig
from perceiver_dist.errors import UserError
from perceiver_dist.modalities import ModalityInput
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.range_checks import check_range
from pipelines.shards.source import DataConfig, SourceConfig
from pipelines.storage.files import absolute_uri, join


@dataclass(frozen=True)
class WorkerRange:
    """Elastic number of workers, which changes during the run as nodes join and leave.

    Attributes:
        min: Minimum number of workers; with fewer available, training waits.
        max: Maximum number of workers, at most `train.lanes`; Ray requests this many from a cluster that can grow.
    """

    min: int
    max: int


@dataclass(frozen=True)
class TrainConfig:
    """Length of the run, workers, batch size, evaluation, checkpoints and fault tolerance.

    Attributes:
        steps: Optimizer steps of the whole run; every step learns from one source.
        micro_batch: Samples per unit, which is what a rank processes at once. Limited by memory.
        lanes: Units per optimizer step, over all ranks: the global batch is lanes * micro_batch samples. The number of
            workers must divide it; a rank with several lanes accumulates gradients. If you change the number of
            workers and keep this, every step still has the same samples.
        num_workers: Training processes, one per GPU on GPUs. A number, or {min: A, max: B} for elastic training: the
            run resumes from the newest checkpoint with fewer workers when nodes are lost and with more when nodes
            join.
        device: cuda trains on one GPU per worker, cpu on CPUs; auto selects cuda where workers have GPUs.
        cpus_per_worker: CPUs that Ray reserves for each worker; the remaining ones read and decode.
        gpus_per_worker: GPUs that Ray reserves for each worker, 0 or 1; null means 1 if workers train on cuda, else 0.
            Set it to 1 on an autoscaling cluster that starts without GPUs: it adds one only when a GPU is requested.
        precision: bf16 runs matrix products in bfloat16 (autocast); parameters, gradients and optimizer state stay
            in fp32 either way. fp32 is the default because it is bitwise reproducible on CPU.
        compile: Whether torch.compile fuses the operations of the latents' layers, which costs time at the first step
            and needs a C compiler. null means yes on CUDA for large models and batches (reasons in `compiles_layers`),
            and no on CPUs, where it changes the bits. Not possible with deepspeed.zero_stage 3.
        stop_at: Optimizer step after which the run pauses; null trains to the last step. The learning rate still
            follows `steps`, so that a run resumed later gives the same result as one that never paused.
        start_from: Path or URI of another run's checkpoint to start from, with its weights, optimizer state and step;
            null starts at step 0 with new weights. No effect on a run that has checkpoints: it resumes from its own.
        fine_tune: Path or URI of a trained model (a run, a checkpoint, or an exported folder) whose weights initialise
            a new run, at step 0. Heads, and modalities that the model lacks, are initialised randomly. No effect on a
            run that has a checkpoint, or with `start_from`.
        seed: Seed of the initial weights and of the order of samples.
        log_every: Optimizer steps between logged losses.
        eval_every: Optimizer steps between evaluations on the held-out shards; 0 evaluates at the end only.
        checkpoint_every: Optimizer steps between checkpoints; there is always one at the end.
        best_metric: Metric whose best checkpoint is kept besides the newest ones, as <source>/<metric>, such as
            fashion/accuracy: the lowest of a loss, the highest of any other. It is the checkpoint that the run's folder
            stands for in evaluate, predict, export and fine_tune. Needs eval_every. null keeps the newest only.
        patience: Number of evaluations in a row without an improvement of best_metric after which the run ends; null
            takes all steps. The learning rate still follows `steps`.
        keep_checkpoints: Number of newest checkpoints to keep; 2, so that one is left if the newest turns out damaged.
        max_failures: Maximum number of consecutive failures of the workers without a new checkpoint. Lost workers are
            restarted each time, and a checkpoint resets the count, so a long run survives any number of them.
        hang_seconds: Seconds without progress after which a run counts as hung: stacks are saved, and the workers are
            ended and resume from the newest checkpoint, which counts as a failure. If ten times the longest wait so far
            is more, it is that; the first step has five times as long, and a wait for storage `data.storage_seconds`
            more. 0 turns this off.
        leave_out_slow_nodes: Whether workers that are started again leave out the nodes that were found to be slow,
            provided that the others can hold them. Slow nodes are always named on the screen.
        max_skipped_steps: Number of optimizer steps with a non-finite gradient, which are skipped, after which the run
            stops. A few are usual in long bf16 runs; each is reported with its units.
    """

    steps: int = 1000
    micro_batch: int = 32
    lanes: int = 2
    num_workers: int | WorkerRange = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpus_per_worker: float = 1.0
    gpus_per_worker: Literal[0, 1] | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool | None = None
    stop_at: int | None = None
    start_from: str | None = None
    fine_tune: str | None = None
    seed: int = 0
    log_every: int = 10
    eval_every: int = 0
    checkpoint_every: int = 250
    best_metric: str | None = None
    patience: int | None = None
    keep_checkpoints: int = 2
    max_failures: int = 5
    hang_seconds: float = 120.0
    leave_out_slow_nodes: bool = False
    max_skipped_steps: int = 10

    def __post_init__(self) -> None:
        """Check the ranges, and the options that depend on each other.

        Raises:
            UserError: A number is outside its range, or the number of workers does not divide the lanes.
        """
        positive = ["steps", "micro_batch", "lanes", "log_every"]
        positive += ["checkpoint_every", "keep_checkpoints", "max_skipped_steps"]
        positive += ["patience"] * (self.patience is not None)
        check_range(self, "train.", positive, at_least=1)
        check_range(
            self,
            "train.",
            ["eval_every", "max_failures", "hang_seconds", "seed", "cpus_per_worker"],
            at_least=0,
        )
        if self.stop_at is not None and not 1 <= self.stop_at <= self.steps:
            raise UserError(
                f"train.stop_at is {self.stop_at}, must be between 1 and train.steps {self.steps}, or null"
            )
        if self.best_metric is not None and not self.eval_every:
            raise UserError(
                f"train.best_metric is {self.best_metric}, but train.eval_every is 0; set the steps between evaluations"
            )
        if self.patience is not None and self.best_metric is None:
            raise UserError(
                f"train.patience is {self.patience}, but train.best_metric is null; name the metric that has to improve"
            )
        if self.device == "cuda" and self.gpus_per_worker == 0:
            raise UserError(
                "train.device is cuda, but train.gpus_per_worker is 0; set it to 1 or leave it out"
            )
        self._check_workers()

    @property
    def global_batch(self) -> int:
        """Samples of an optimizer step, over all ranks."""
        return self.lanes * self.micro_batch

    @property
    def min_workers(self) -> int:
        """Minimum number of workers."""
        return self.num_workers.min if isinstance(self.num_workers, WorkerRange) else self.num_workers

    @property
    def max_workers(self) -> int:
        """Maximum number of workers."""
        return self.num_workers.max if isinstance(self.num_workers, WorkerRange) else self.num_workers

    def _check_workers(self) -> None:
        if isinstance(self.num_workers, WorkerRange):
            # Elastic workers need not divide the lanes. Where they do not, a rank without a unit for the last
            # accumulation step repeats one with weight 0 (`perceiver_dist.training.zero.accumulation`).
            if not 1 <= self.num_workers.min <= self.num_workers.max <= self.lanes:
                raise UserError(
                    f"train.num_workers is {self.num_workers.min} to {self.num_workers.max}; min must be at least 1, "
                    f"max at least min and at most train.lanes {self.lanes}, so that every worker has a lane"
                )
            return
        check_range(self, "train.", ["num_workers"], at_least=1)
        if self.lanes % self.num_workers:
            divisors = [n for n in range(1, self.lanes + 1) if self.lanes % n == 0]
            raise UserError(
                f"train.num_workers is {self.num_workers}, which does not divide train.lanes {self.lanes}; "
                f"use one of {divisors} workers, or change train.lanes"
            )


@dataclass(frozen=True)
class DeepSpeedConfig:
    """DeepSpeed ZeRO; batch sizes, precision and clipping are derived from `train` and `optim`.

    Attributes:
        zero_stage: ZeRO stage: 0 partitions nothing over the ranks, 1 the optimizer state, 2 also the gradients, 3 also
            the parameters. 2 needs no more communication than 0 and saves most of the memory.
        overrides: Entries merged last into DeepSpeed's own configuration, for experts.
    """

    zero_stage: Literal[0, 1, 2, 3] = 2
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrackingConfig:
    """MLflow tracking.

    Attributes:
        uri: MLflow tracking URI; null for MLFLOW_TRACKING_URI or, if that is not set, a SQLite file in storage.path,
            which only one machine can use.
        experiment: MLflow experiment of the run; null for MLFLOW_EXPERIMENT_NAME or, if that is not set, "perceiver".
        samples: Whether to write the keys of every step's samples to samples.jsonl in the run folder, to audit their
            order; false because the file grows with the run.
    """

    uri: str | None = None
    experiment: str | None = None
    samples: bool = False


@dataclass(frozen=True)
class StorageConfig:
    """Storage of runs.

    Attributes:
        path: Folder or URI (s3://, gs://) that every node can access; each run has a folder in it.
        run_name: Name of the run and its folder. An existing name resumes that run from its newest checkpoint; null
            generates a name from the time.
    """

    path: str = "runs"
    run_name: str | None = None

    def __post_init__(self) -> None:
        """Check the name.

        Raises:
            UserError: The name is not valid for a folder.
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
        sources: The data sources; each is one task.
        optim: Optimizer and learning rate.
        train: Steps, batches, workers, evaluation and checkpoints.
        deepspeed: Partitioning of the training state.
        data: Reading of shards.
        tracking: MLflow tracking.
        storage: Storage of runs.
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
        """Check what spans several parts.

        Raises:
            UserError: A password or key in an option, no source, compilation at ZeRO stage 3, two sources with one
                name, a weight that is not above 0, a source with a modality that the model has no input for, masks
                without a spectrogram, or a best metric that no evaluation has.
        """
        # First, since the other messages repeat values.
        refuse_credentials(asdict(self))
        if not self.sources:
            raise UserError("sources is empty: name at least one source to train on")
        if self.train.compile and self.deepspeed.zero_stage == 3:
            raise UserError(
                "train.compile is true, but deepspeed.zero_stage is 3, which gathers parameters in hooks of modules "
                "that would be compiled; use stage 0 to 2, or leave train.compile out"
            )
        if self.train.best_metric is not None:
            check_best_metric(self.train.best_metric, self.sources)
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise UserError(
                    f"sources: the name '{name}' is used {names.count(name)} times; use each name once"
                )
        for source in self.sources:
            check_range(source, f"source '{source.name}': ", ["weight"], above=0, below=inf)
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
                    "add the modality audio and set model.audio.mel_bands, or set masks to 0"
                )

    @property
    def last_step(self) -> int:
        """Optimizer step after which the run ends."""
        return self.train.stop_at or self.train.steps

    @property
    def scaled_optim(self) -> OptimConfig:
        """`optim` with the learning rate of the run's global batch."""
        given_for = self.optim.learning_rate_batch
        if given_for is None:
            return self.optim
        peak = self.optim.learning_rate * self.train.global_batch / given_for
        return replace(self.optim, learning_rate=peak, learning_rate_batch=None)

    @property
    def heads(self) -> dict[str, int]:
        """Number of classes by source name: the model's heads."""
        return {source.name: source.num_classes for source in self.sources}

    def inputs(self, source: SourceConfig) -> dict[str, ModalityInput]:
        """Return the input options of each modality of a source.

        Args:
            source: One of the sources.
        """
        return {modality: getattr(self.model, modality) for modality in source.modalities}

    @property
    def weights(self) -> dict[str, float]:
        """Weight by source name: its share of the optimizer steps, relative to the others."""
        return {source.name: source.weight for source in self.sources}

    @property
    def index_folder(self) -> str:
        """Absolute path or URI of the folder of the shard indexes."""
        return absolute_uri(self.data.index_path or join(self.storage.path, "index"))
