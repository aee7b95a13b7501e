"""Options of a search: the space, the sampler, the scheduler, and the limits on cost."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError
from perceiver_dist.range_checks import check_range


@dataclass(frozen=True)
class SearchConfig:
    """Options of a hyperparameter search; the rest of the configuration is the training that every trial runs.

    Attributes:
        space: The options to vary: dotted name of any option of the training -> a list of values, or a range such as
            {low: 1.0e-4, high: 1.0e-2, log: true} or {low: 16, high: 128, step: 16}. Options of a source are named
            sources.SOURCE.OPTION.
        trials: Max number of trials, including the baseline.
        baseline: Whether trial 0 is the unchanged configuration, which the other trials have to beat.
        sampler: random draws candidates independently, grid takes every combination in order, tpe (the
            tree-structured Parzen estimator of Optuna) draws near the best values so far.
        scheduler: none trains every trial to its last step. asha (asynchronous successive halving) stops a trial at
            an evaluation if it is not among the best 1 / reduction_factor there. hyperband assigns the trials to
            brackets that start stopping later and later. pbt (population based training) continues the worst trials
            from the weights of the best ones, with other values of optim.*; all other options stay the same.
        metric: The score of a trial. mean is the mean over the sources of their accuracy or mean_average_precision on
            the held-out shards, SOURCE/METRIC is one of them alone. Between 0 and 1, higher is better.
        minimize_flops: Whether tpe also minimizes FLOPs per sample, so that it searches the whole trade-off between
            score and cost instead of the highest score only.
        iso_flops: Whether every trial gets the same training FLOPs as the baseline, by adapting its number of steps,
            so that shapes are compared at equal cost. If false, every trial takes train.steps.
        evaluations: Evaluations of a trial, evenly spaced over its training; at each of them the scheduler may stop
            it. Each evaluation also writes a checkpoint, from which a killed search resumes. By default,
            asha decides after the first third of the training.
        reduction_factor: One of this many trials continues after an evaluation that decides. Also the ratio between
            the numbers of two such evaluations: with 3, evaluations 1, 3, 9, ... decide. The Hyperband paper
            recommends 3 or 4.
        max_concurrent: Max number of trials that run at the same time; null for as many as the CPUs and GPUs of the
            cluster allow.
        max_parameters: Max number of parameters of a candidate; null for no limit.
        max_flops_per_sample: Max FLOPs of the forward pass of one sample, averaged over the sources by weight; null
            for no limit.
        max_memory_per_rank: Max bytes that training needs on a rank, as computed before it starts; null for no limit.
        seed: Seed of the candidates; train.seed is the seed of the weights and of the order of samples.
        name: Name of the search and of its folder in storage.path. An existing name resumes that search.
    """

    space: dict[str, Any] = field(default_factory=dict)
    trials: int = 12
    baseline: bool = True
    sampler: Literal["random", "grid", "tpe"] = "random"
    scheduler: Literal["none", "asha", "hyperband", "pbt"] = "asha"
    metric: str = "mean"
    minimize_flops: bool = False
    iso_flops: bool = False
    evaluations: int = 3
    reduction_factor: int = 3
    max_concurrent: int | None = None
    max_parameters: float | None = None
    max_flops_per_sample: float | None = None
    max_memory_per_rank: float | None = None
    seed: int = 0
    name: str = "search"

    def __post_init__(self) -> None:
        """Check the ranges, and which options go together.

        Raises:
            UserError: A number is outside its range, or two options exclude each other.
        """
        check_range(self, "search.", ["trials", "evaluations", "max_concurrent"], at_least=1)
        check_range(self, "search.", ["reduction_factor"], at_least=2)
        limits = ["max_parameters", "max_flops_per_sample", "max_memory_per_rank"]
        check_range(self, "search.", limits, above=0, remedy=", or null for no limit")
        if not self.name or set(self.name) & set("/\\: "):
            raise UserError(f"search.name is '{self.name}'; use a name without slashes, colons and spaces")
        if self.minimize_flops and (self.sampler != "tpe" or self.scheduler != "none"):
            raise UserError(
                f"search.minimize_flops is true with sampler {self.sampler} and scheduler {self.scheduler}; "
                "set sampler to tpe, and scheduler to none, since early stopping would judge trials by score alone"
            )
        if self.scheduler == "pbt" and (self.sampler != "random" or self.iso_flops):
            raise UserError(
                f"search.scheduler is pbt with sampler {self.sampler} and iso_flops {self.iso_flops}; all trials of a "
                "population have the same shape: set sampler to random and iso_flops to false"
            )
        others = [name for name in self.space if not name.startswith("optim.")]
        if self.scheduler == "pbt" and others:
            raise UserError(
                f"search.space: {others[0]} varies with search.scheduler pbt, in which trials continue from each "
                "other's weights, so that only options of optim.* can vary: remove it, or choose another scheduler"
            )


@dataclass(frozen=True)
class SearchRunConfig(RunConfig):
    """All options of a search: those of a training run, and `search`.

    Attributes:
        search: Options of the search.
    """

    search: SearchConfig = field(default_factory=SearchConfig)

    @property
    def training(self) -> RunConfig:
        """Configuration of the training with nothing varied."""
        return RunConfig(**{part.name: getattr(self, part.name) for part in fields(RunConfig)})
