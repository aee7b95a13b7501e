"""Candidates of a search, drawn with Optuna or from a grid.

The next candidate is a function of the seed, the number of candidates drawn before, and, with sampler tpe, the scores
so far. Nothing is kept between two draws: each one builds an Optuna study from the record, and seeds the sampler anew.
So a resumed search draws the same candidates. With tpe a draw depends on which trials have ended by then, and so on
their speed if several run at once. A candidate that was drawn stays, since it is in the record.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError
from perceiver_dist.search.strategy.budget import (
    cost_of,
    fit_to_search,
    over_limit,
    training_flops_of,
)
from perceiver_dist.search.study.search_config import SearchConfig
from perceiver_dist.search.study.search_record import SearchRecord, Trial
from perceiver_dist.search.study.space import Dimension, combinations, parse_space, values_of, with_values
from pipelines.permutation import hash64

_MAX_REJECTED_DRAWS = 1000
"""Candidates rejected in a row after which the space counts as exhausted; the draws take less than a second."""

_RANDOM_TRIALS_OF_TPE = 5
"""Trials that tpe draws at random at first. Fewer scores are mostly noise; Optuna's default of 10 would leave nothing
for tpe in a search of a dozen trials."""


@dataclass(frozen=True)
class Candidates:
    """Source of the candidates of a search.

    Attributes:
        search: Options of the search.
        training: Configuration of the training with nothing varied.
        device: Type of the device that trials train on, cpu or cuda.
    """

    search: SearchConfig
    training: RunConfig
    device: str

    def draw(self, record: SearchRecord) -> Trial | None:
        """Draw the next trial, and count drawn and rejected candidates in the record.

        Args:
            record: Record of the search; the trial is not added to it.

        Returns:
            The trial; None if there are `search.trials` already, or no candidates are left.

        Raises:
            UserError: No candidate is within the limits, or the space is not valid.
        """
        if len(record.trials) >= self.search.trials:
            return None
        dimensions = parse_space(self.search.space, self.training)
        if self.search.baseline and not record.trials:
            baseline = values_of(self.training, dimensions)
            return Trial(0, baseline, cost_of(self.training_of(baseline), self.device))
        # A grid is finite, and may have valid combinations after any number of rejected ones.
        for _ in count() if self.search.sampler == "grid" else range(_MAX_REJECTED_DRAWS):
            values = self._draw_values(record, dimensions)
            if values is None:
                break
            record.drawn += 1
            trial, reason = self._try_candidate(len(record.trials), values, record)
            if trial is not None:
                return trial
            record.rejected[reason] = record.rejected.get(reason, 0) + 1
        if len(record.trials) <= int(self.search.baseline):
            reasons = ", ".join(f"{times} {reason}" for reason, times in record.rejected.items())
            raise UserError(
                f"search: none of the {record.drawn} candidates drawn can be tried ({reasons}); raise the limits or "
                "change search.space"
            )
        return None

    def training_of(self, values: Mapping[str, Any]) -> RunConfig:
        """Return the training configuration of a candidate, with its steps and evaluations.

        Args:
            values: Dotted name -> value.

        Raises:
            UserError: The values are not valid together.
        """
        flops = None
        if self.search.iso_flops:
            unchanged = fit_to_search(self.training, self.search, None, self.device)
            flops = training_flops_of(unchanged, self.device)
        return fit_to_search(with_values(self.training, values), self.search, flops, self.device)

    def _try_candidate(
        self, number: int, values: Mapping[str, Any], record: SearchRecord
    ) -> tuple[Trial | None, str]:
        """Return the trial of a candidate, or None and the reason for rejecting it."""
        if any(trial.values == values for trial in record.trials):
            return None, "drawn before"
        try:
            training = self.training_of(values)
            if reason := over_limit(training, self.search, self.device):
                return None, reason
            return Trial(number, dict(values), cost_of(training, self.device)), ""
        except UserError as error:
            return None, str(error)

    def _draw_values(
        self, record: SearchRecord, dimensions: Mapping[str, Dimension]
    ) -> dict[str, Any] | None:
        if self.search.sampler == "grid":
            return next(islice(combinations(dimensions), record.drawn, None), None)
        logging.getLogger("optuna").setLevel(logging.WARNING)
        with warnings.catch_warnings():
            # Optuna warns about a range that its step does not divide; ending at the last step is what we want.
            warnings.simplefilter("ignore", UserWarning)
            distributions = {name: dimension.distribution for name, dimension in dimensions.items()}
            study = optuna.create_study(
                directions=["maximize", "minimize"] if self.search.minimize_flops else ["maximize"],
                sampler=self._sampler(record.drawn),
            )
            if self.search.sampler == "tpe":
                study.add_trials(self._optuna_trials(record.trials, dimensions, distributions))
            drawn = study.ask(distributions).params
        return {name: dimensions[name].from_optuna(drawn[name]) for name in dimensions}

    def _sampler(self, drawn: int) -> BaseSampler:
        seed = hash64(self.search.seed, drawn) % 2**32  # NumPy's RandomState takes 32 bits.
        if self.search.sampler == "random":
            return RandomSampler(seed=seed)
        # Options of a model interact, so that they are modelled jointly (`multivariate`). `constant_liar` keeps
        # concurrent trials apart, by counting running trials as bad ones.
        return TPESampler(
            seed=seed, n_startup_trials=_RANDOM_TRIALS_OF_TPE, multivariate=True, constant_liar=True
        )

    def _optuna_trials(
        self,
        trials: Sequence[Trial],
        dimensions: Mapping[str, Dimension],
        distributions: Mapping[str, BaseDistribution],
    ) -> list[FrozenTrial]:
        """Convert trials for Optuna, without those outside of the space, such as the baseline may be."""
        converted = []
        for trial in trials:
            drawn = {name: dimensions[name].to_optuna(trial.values[name]) for name in dimensions}
            if None not in drawn.values():
                values = None
                if trial.state == "completed":
                    flops = [trial.cost.flops_per_sample] if self.search.minimize_flops else []
                    values = [trial.score or 0.0, *flops]
                scores = {evaluation.number: evaluation.score for evaluation in trial.evaluations}
                converted.append(
                    create_trial(
                        state=_OPTUNA_STATE[trial.state],
                        params=drawn,
                        distributions=dict(distributions),
                        values=values,
                        # Optuna has no intermediate values in studies with two objectives.
                        intermediate_values={} if self.search.minimize_flops else scores,
                    )
                )
        return converted


_OPTUNA_STATE = {
    "running": TrialState.RUNNING,
    "completed": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
