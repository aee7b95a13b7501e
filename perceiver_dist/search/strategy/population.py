"""Population based training (Jaderberg et al. 2017, arXiv 1711.09846): values that change while trials train.

All trials train from one evaluation to the next: a generation. Then the worst quarter go on from the weights and the
optimizer state of one of the best quarter, with its values changed a little (truncation selection, and factors of 0.8
and 1.2, as in the paper). Generations are in step, so what happens is a function of the scores and the seed: a killed
search does what it would have done. Trial 0, if it is the baseline, is copied from but keeps its own values.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from perceiver_dist.search.study.search_record import SearchRecord, Trial
from perceiver_dist.search.study.space import Choices, Dimension
from pipelines.permutation import hash64

_QUANTILE = 4
_FACTORS = (0.8, 1.2)
_DRAWN_ANEW = 0.25
"""Probability that a value is drawn from its whole dimension, so that none is lost from the population for good."""


def next_generation_is_due(record: SearchRecord, generations: int) -> bool:
    """Return whether all trials that still train are at the end of a generation that is not the last.

    Args:
        record: The search.
        generations: Generations there are: as many as evaluations of a trial.
    """
    running = [trial for trial in record.trials if trial.state == "running"]
    at_end = all(len(trial.evaluations) > record.generation for trial in running)
    return bool(running) and at_end and record.generation + 1 < generations


def begin_generation(record: SearchRecord, dimensions: Mapping[str, Dimension], seed: int) -> None:
    """Let the worst trials go on from the best ones, and count the next generation.

    Args:
        record: The search; its generation is over. Trials get new values and `history`.
        dimensions: The space.
        seed: The search's seed.
    """
    record.generation += 1
    ranked = sorted(
        (trial for trial in record.trials if trial.state == "running"),
        key=lambda trial: (trial.score or 0.0, -trial.number),
    )
    count = len(ranked) // _QUANTILE
    best = ranked[len(ranked) - count :]
    for trial in ranked[:count]:
        if trial is record.baseline:
            continue
        random = np.random.default_rng(hash64(seed, "generation", record.generation, trial.number))
        donor = best[random.integers(len(best))]
        trial.history.append({
            "evaluation": record.generation,
            "from_trial": donor.number,
            "values_before": trial.values,
        })  # fmt: skip
        trial.values = {
            name: _changed(donor.values[name], dimension, random) for name, dimension in dimensions.items()
        }
        trial.start_from = donor.checkpoint


def folder_name(trial: Trial) -> str:
    """Return the name of a trial's folder, another one each time that it goes on from another trial's weights.

    Args:
        trial: The trial.
    """
    return f"{trial.name}-{len(trial.history)}" if trial.history else trial.name


def _changed(value: Any, dimension: Dimension, random: np.random.Generator) -> Any:
    anew = random.random() < _DRAWN_ANEW
    if isinstance(dimension, Choices):
        last = len(dimension.values) - 1
        beside = (dimension.drawn(value) or 0) + int(random.choice((-1, 1)))
        return dimension.value(int(random.integers(last + 1)) if anew else min(max(beside, 0), last))
    if anew and dimension.log:
        number = float(np.exp(random.uniform(np.log(dimension.low), np.log(dimension.high))))
    elif anew:
        number = float(random.uniform(dimension.low, dimension.high))
    else:
        number = value * float(random.choice(_FACTORS))
    if dimension.step is not None:
        number = dimension.low + round((number - dimension.low) / dimension.step) * dimension.step
    number = min(max(number, dimension.low), dimension.high)
    return round(number) if dimension.integer else number
