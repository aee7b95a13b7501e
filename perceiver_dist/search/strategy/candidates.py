"""Which candidate is tried next: a function of the seed, the number of candidates drawn before, and the scores so far.

Nothing is kept between two draws: Optuna's study is built anew from the record, its sampler gets a seed of its own for
every draw. So a search that was killed draws what it would have drawn. With "tpe" a draw depends on the trials that
have ended by then, hence on their pace where several run at once; what was drawn is in the record and stays.
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
from perceiver_dist.search.strategy.budget import cost_of, fit_to_search, over_limit
from perceiver_dist.search.study.search_config import SearchConfig
from perceiver_dist.search.study.search_record import SearchRecord, Trial
from perceiver_dist.search.study.space import Dimension, combinations, parse_space, values_of, with_values
from pipelines.permutation import hash64

_DRAWS_IN_VAIN = 1000
"""Candidates drawn one after the other without one to try, after which the space is taken to be used up."""

_RANDOM_TRIALS_OF_TPE = 5
"""With fewer trials what seems good is chance; Optuna's own default of 10 suits longer searches than a dozen trials."""


@dataclass(frozen=True)
class Candidates:
    """Draws the candidates of a search.

    Attributes:
        search: The search's options.
        training: The training with nothing varied.
        device: Type of the device that trials train on, cpu or cuda.
    """

    search: SearchConfig
    training: RunConfig
    device: str

    def draw(self, record: SearchRecord) -> Trial | None:
        """Draw the next trial, and note in the record what was drawn and rejected on the way.

        Args:
            record: The search so far; the trial is not added to it.

        Returns:
            The trial; None if there are `search.trials` already or no candidates are left.

        Raises:
            UserError: Nothing in the whole space is within the limits, or the space is not valid.
        """
        if len(record.trials) >= self.search.trials:
            return None
        dimensions = parse_space(self.search.space, self.training)
        if self.search.baseline and not record.trials:
            return self._trial(0, values_of(self.training, dimensions))
        # A grid ends by itself, however many of its combinations are over the limits.
        for _ in count() if self.search.sampler == "grid" else range(_DRAWS_IN_VAIN):
            values = self._values(record, dimensions)
            if values is None:
                break
            record.drawn += 1
            trial, reason = self._judged(len(record.trials), values, record)
            if trial is not None:
                return trial
            record.rejected[reason] = record.rejected.get(reason, 0) + 1
        if len(record.trials) <= int(self.search.baseline):
            reasons = ", ".join(f"{times} {reason}" for reason, times in record.rejected.items())
            raise UserError(
                f"search: none of {record.drawn} candidates can be tried ({reasons}); raise the limits or change "
                "search.space"
            )
        return None

    def training_of(self, values: Mapping[str, Any]) -> RunConfig:
        """Return the training of a candidate, with its steps and evaluations.

        Args:
            values: Dotted name -> value.

        Raises:
            UserError: The values are not possible together.
        """
        flops = None
        if self.search.iso_flops:
            flops = cost_of(
                fit_to_search(self.training, self.search, None, self.device), self.device
            ).training_flops
        return fit_to_search(with_values(self.training, values), self.search, flops, self.device)

    def _trial(self, number: int, values: Mapping[str, Any]) -> Trial:
        return Trial(number, dict(values), cost_of(self.training_of(values), self.device))

    def _judged(
        self, number: int, values: Mapping[str, Any], record: SearchRecord
    ) -> tuple[Trial | None, str]:
        """Return the trial of a candidate, or why it is not to be tried."""
        if any(trial.values == values for trial in record.trials):
            return None, "drawn before"
        try:
            trial = self._trial(number, values)
        except UserError as error:
            return None, str(error)
        reason = over_limit(trial.cost, self.search)
        return (None, reason) if reason else (trial, "")

    def _values(self, record: SearchRecord, dimensions: Mapping[str, Dimension]) -> dict[str, Any] | None:
        if self.search.sampler == "grid":
            return next(islice(combinations(dimensions), record.drawn, None), None)
        logging.getLogger("optuna").setLevel(logging.WARNING)
        with warnings.catch_warnings():
            # Where its step does not divide it, a range ends at its last value; nobody has to be told.
            warnings.simplefilter("ignore", UserWarning)
            distributions = {name: dimension.distribution for name, dimension in dimensions.items()}
            study = optuna.create_study(
                directions=["maximize", "minimize"] if self.search.minimize_flops else ["maximize"],
                sampler=self._sampler(record.drawn),
            )
            if self.search.sampler == "tpe":
                study.add_trials(self._known(record.trials, dimensions, distributions))
            drawn = study.ask(distributions).params
        return {name: dimensions[name].value(drawn[name]) for name in dimensions}

    def _sampler(self, drawn: int) -> BaseSampler:
        seed = hash64(self.search.seed, drawn) % 2**32
        if self.search.sampler == "random":
            return RandomSampler(seed=seed)
        return TPESampler(
            seed=seed, n_startup_trials=_RANDOM_TRIALS_OF_TPE, multivariate=True, constant_liar=True
        )

    def _known(
        self,
        trials: Sequence[Trial],
        dimensions: Mapping[str, Dimension],
        distributions: Mapping[str, BaseDistribution],
    ) -> list[FrozenTrial]:
        """Return the trials as Optuna knows them; those outside of the space, as the baseline may be, are left out."""
        known = []
        for trial in trials:
            drawn = {name: dimensions[name].drawn(trial.values[name]) for name in dimensions}
            if None not in drawn.values():
                values = None
                if trial.state == "completed":
                    flops = [trial.cost.flops_per_sample] if self.search.minimize_flops else []
                    values = [trial.score or 0.0, *flops]
                looks = {look.number: look.score for look in trial.evaluations}
                known.append(
                    create_trial(
                        state=_OPTUNA_STATE[trial.state],
                        params=drawn,
                        distributions=dict(distributions),
                        values=values,
                        intermediate_values={} if self.search.minimize_flops else looks,
                    )
                )
        return known


_OPTUNA_STATE = {
    "running": TrialState.RUNNING,
    "completed": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
