"""Options of a search: what to vary, how candidates are drawn, what they may cost, and when one is given up."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError
from perceiver_dist.range_checks import check_range


@dataclass(frozen=True)
class SearchConfig:
    """What is searched and how; the rest of the configuration is the training that every trial is.

    Attributes:
        space: What to vary: the dotted name of any option of the training, and a list of values, or a range such as
            {low: 1.0e-4, high: 1.0e-2, log: true} or {low: 16, high: 128, step: 16}. Options of a source are named
            sources.SOURCE.OPTION.
        trials: Largest number of trials, the baseline among them.
        baseline: Whether trial 0 is the configuration as it stands, with nothing varied: what the others have to beat.
        sampler: random draws every candidate alone, grid takes every combination in order, tpe (a tree-structured
            Parzen estimator, from Optuna) draws near what was good so far.
        scheduler: none trains every trial to its end. asha (asynchronous successive halving) stops a trial at an
            evaluation at which it is not among the best 1 / reduction_factor. hyperband deals the trials to brackets
            that begin to stop later and later. pbt (population based training) lets the worst trials go on from
            the best ones' weights with other values of optim.*; all else stays as it is.
        metric: What makes a trial better: mean is the mean over the sources of accuracy or mean_average_precision on
            the held-out shards, SOURCE/METRIC one of them alone. Between 0 and 1, higher is better.
        minimize_flops: Whether tpe looks for small FLOPs per sample as well as a high score; the whole trade-off is
            searched instead of its top end.
        iso_flops: Whether every trial gets as many training FLOPs as the baseline, by its number of steps, so that
            shapes are compared at equal cost. If not, every trial takes train.steps.
        evaluations: Evaluations of a trial, at equal shares of its training; each is a point at which the
            scheduler decides. Each also writes a checkpoint, from which a killed search goes on.
        reduction_factor: Of how many trials one goes on, and the ratio between two evaluations that decide: with 3,
            evaluations 1, 3, 9, ... do.
        max_concurrent: Trials at once; null for as many as the cluster has CPUs and GPUs for.
        max_parameters: Largest number of parameters of a candidate; null for any.
        max_flops_per_sample: Largest number of FLOPs of one sample's forward pass, the mean over the sources by
            weight; null for any.
        max_memory_per_rank: Largest number of bytes that training is computed to hold on a rank; null for any.
        seed: Seed of the candidates; train.seed is that of the weights and the order of samples.
        name: Name of the search and of its folder in storage.path. Starting a name again goes on with it.
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
                "it needs sampler tpe, and scheduler none since no trial is worse for costing less"
            )
        if self.scheduler == "pbt" and (self.sampler != "random" or self.iso_flops):
            raise UserError(
                f"search.scheduler is pbt with sampler {self.sampler} and iso_flops {self.iso_flops}; a population "
                "shares one shape: use sampler random and leave iso_flops false"
            )
        others = [name for name in self.space if not name.startswith("optim.")]
        if self.scheduler == "pbt" and others:
            raise UserError(
                f"search.space: {others[0]} varies with search.scheduler pbt, in which trials go on from each other's "
                "weights, so that only options of optim.* can vary: take it out, or choose another scheduler"
            )


@dataclass(frozen=True)
class SearchRunConfig(RunConfig):
    """All options of a search: those of a training run, and `search`.

    Attributes:
        search: What is searched and how.
    """

    search: SearchConfig = field(default_factory=SearchConfig)

    @property
    def training(self) -> RunConfig:
        """The training that a trial is before anything is varied."""
        return RunConfig(**{part.name: getattr(self, part.name) for part in fields(RunConfig)})
