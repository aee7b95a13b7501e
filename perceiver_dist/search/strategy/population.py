"""Population based training (Jaderberg et al. 2017, arXiv 1711.09846): hyperparameters that change during training.

All trials train from one evaluation to the next; this is a generation. Then each of the worst quarter continues from
the checkpoint (weights and optimizer state) of one of the best quarter, with its values perturbed: truncation
selection, and factors of 0.8 and 1.2, as in the paper. Generations are synchronous, so a population is a function of
the scores and the seed, and a resumed search takes the same decisions. Trial 0, if it is the baseline, can be copied
but keeps its own values.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from perceiver_dist.search.study.search_record import SearchRecord, Trial
from perceiver_dist.search.study.space import Choices, Dimension
from pipelines.permutation import hash64

_QUANTILES = 4
"""Of this many equal parts of the population, the worst is replaced by copies from the best: a quarter, the default of
Ray Tune. The fifth of the paper would be no trial at all in a population of four."""
_FACTORS = (0.8, 1.2)
"""Perturbations of a number, as in the paper."""
_RESAMPLE_PROBABILITY = 0.25
"""Probability that a value is drawn from its whole dimension, so that no value is lost from the population for good;
the default of Ray Tune."""


def next_generation_is_due(record: SearchRecord, generations: int) -> bool:
    """Return whether all running trials are at the end of a generation that is not the last one.

    Args:
        record: Record of the search.
        generations: Number of generations: that of the evaluations of a trial.
    """
    running = [trial for trial in record.trials if trial.state == "running"]
    at_end = all(len(trial.evaluations) > record.generation for trial in running)
    return bool(running) and at_end and record.generation + 1 < generations


def begin_generation(record: SearchRecord, dimensions: Mapping[str, Dimension], seed: int) -> None:
    """Begin the next generation: replace the worst trials by perturbed copies of the best ones.

    Args:
        record: Record of the search, whose generation is complete. Replaced trials get new values, a new `start_from`,
            and an entry in `history`.
        dimensions: Search space.
        seed: Seed of the search.
    """
    record.generation += 1
    ranked = sorted(
        (trial for trial in record.trials if trial.state == "running"),
        key=lambda trial: (trial.score or 0.0, -trial.number),
    )
    count = len(ranked) // _QUANTILES
    best = ranked[len(ranked) - count :]
    for trial in ranked[:count]:
        if trial is record.baseline:
            continue
        # A generator per trial and generation: its draws do not depend on those for other trials.
        random = np.random.default_rng(hash64(seed, "generation", record.generation, trial.number))
        donor = best[random.integers(len(best))]
        trial.history.append({
            "evaluation": record.generation,
            "from_trial": donor.number,
            "values_before": trial.values,
        })  # fmt: skip
        trial.values = {
            name: _perturbed(donor.values[name], dimension, random) for name, dimension in dimensions.items()
        }
        trial.start_from = donor.checkpoint


def folder_name(trial: Trial) -> str:
    """Return the name of a trial's run folder, which holds the training with one set of values.

    So the name changes each time that the trial continues from another trial's weights.

    Args:
        trial: The trial.
    """
    return f"{trial.name}-{len(trial.history)}" if trial.history else trial.name


def _perturbed(value: Any, dimension: Dimension, random: np.random.Generator) -> Any:
    """Return a value near another one, or a new draw from the whole dimension."""
    resample = random.random() < _RESAMPLE_PROBABILITY
    if isinstance(dimension, Choices):
        last = len(dimension.values) - 1
        neighbour = (dimension.to_optuna(value) or 0) + int(random.choice((-1, 1)))
        return dimension.from_optuna(
            int(random.integers(last + 1)) if resample else min(max(neighbour, 0), last)
        )
    if resample and dimension.log:
        number = float(np.exp(random.uniform(np.log(dimension.low), np.log(dimension.high))))
    elif resample:
        number = float(random.uniform(dimension.low, dimension.high))
    else:
        number = value * float(random.choice(_FACTORS))
    if dimension.step is not None:
        number = dimension.low + round((number - dimension.low) / dimension.step) * dimension.step
    number = min(max(number, dimension.low), dimension.high)
    return round(number) if dimension.integer else number
