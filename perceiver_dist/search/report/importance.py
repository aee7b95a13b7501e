"""Hyperparameter importance: the share of the variance of the scores that each option explains."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna

from perceiver_dist.search.report.axis_scale import AxisScale, scale_of
from perceiver_dist.search.report.formatting import value_text
from perceiver_dist.search.study.search_record import SearchRecord, Trial

_MIN_TRIALS = 4
"""Min number of trials; a forest of regression trees learns nothing from fewer."""
_SEED = 0
"""Seed of the forest: any constant, so that a record always gives the same shares."""


def importance(record: SearchRecord) -> dict[str, float]:
    """Estimate the share of the variance of the scores that each option explains.

    fANOVA fits a random forest to the values and scores of the trials, and decomposes its variance. PED-ANOVA, the
    default of Optuna, compares the best tenth of the trials with all of them: of a dozen trials, that is one.

    The newest score of a stopped trial comes from earlier in training than that of a completed one. So the scores are
    those of the first evaluation that all scored trials have. In population based training, the values are those with
    which the trials began.

    Args:
        record: Record of the search.

    Returns:
        Dotted name -> share, in descending order; the shares add up to 1. Options that do not vary are left out. Empty
        if there are fewer than four scored trials, if nothing varies, or if all scores are equal.
    """
    trials = [trial for trial in record.trials if trial.evaluations]
    scores = _comparable_scores(trials)
    scales = _scales_that_vary(trials)
    if len(scores) < _MIN_TRIALS or not scales or len(set(scores)) == 1:
        return {}
    with _quiet_optuna():
        study = optuna.create_study(direction="maximize")
        distributions = {name: _distribution(scale) for name, scale in scales.items()}
        for trial, score in zip(trials, scores, strict=True):
            parameters = {
                name: _parameter(_first_values(trial)[name], scale) for name, scale in scales.items()
            }
            study.add_trial(
                optuna.trial.create_trial(params=parameters, distributions=distributions, value=score)
            )
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=_SEED)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in shares.items()}


def _comparable_scores(trials: list[Trial]) -> list[float]:
    """Return the scores at the first evaluation that all trials have; none if there is no such evaluation."""
    by_number = [{found.number: found.score for found in trial.evaluations} for trial in trials]
    shared = set.intersection(*map(set, by_number)) if by_number else set()
    return [scores[min(shared)] for scores in by_number] if shared else []


def _first_values(trial: Trial) -> dict[str, Any]:
    """Return the values up to the first evaluation, after which population based training may change them."""
    return trial.history[0]["values_before"] if trial.history else trial.values


def _scales_that_vary(trials: list[Trial]) -> dict[str, AxisScale]:
    names = trials[0].values if trials else {}
    scales = {name: scale_of([_first_values(trial)[name] for trial in trials]) for name in names}
    return {name: scale for name, scale in scales.items() if len(scale.values) > 1}


def _distribution(scale: AxisScale) -> optuna.distributions.BaseDistribution:
    if scale.kind == "categories":
        return optuna.distributions.CategoricalDistribution(scale.values)
    return optuna.distributions.FloatDistribution(0.0, 1.0)


def _parameter(value: object, scale: AxisScale) -> str | float:
    """Return a category as text, and a number as its position on the scale.

    Optuna's fANOVA evaluator would not take the logarithm of a logarithmic distribution itself.
    """
    return value_text(value) if scale.kind == "categories" else scale.place(value)


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
