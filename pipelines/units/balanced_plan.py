"""Plan that evens out classes of unequal sizes: rarer classes are drawn more often, by a rule and not at random.

With `balance` b, a class of n samples is drawn m = n (N / n)^b times per epoch, rounded, where N is the size of the
largest class: with b = 0 each sample once, with b = 1 each class as often as any other, and with b = 0.5 as in Mahajan
et al. 2018 (arXiv 1805.00932). An epoch is a permutation of all these draws, as it is one of samples in `TrainingPlan`.
Draw j of a class in epoch e is its sample number (e m + j) modulo n. So its samples take turns over the whole run:
after any number of epochs, how often they have been drawn differs by one at most. A unit is still a function of its
number.

Draws are permuted one by one, without chunks: the samples of a class are no neighbours in their shards.
"""

from dataclasses import dataclass

import numpy as np

from pipelines.units.plan import TrainingPlan


class ClassDraws:
    """Samples of each class, and how often each class is drawn per epoch.

    Args:
        classes: (samples,) class of each sample. Samples with a negative one, whose label is no class, are drawn once.
        balance: 0 to 1.

    Attributes:
        per_epoch: Draws of all classes in an epoch.
        by_class: Class -> its number of samples and of draws per epoch, for classes with samples.
    """

    def __init__(self, classes: np.ndarray, balance: float) -> None:
        # Stable, so that the samples of a class keep their order in the index.
        self._samples = np.argsort(classes, kind="stable")
        found, counts = np.unique(classes, return_counts=True)
        known = counts[found >= 0]
        largest = known.max() if len(known) else 1
        draws = np.where(found >= 0, np.rint(counts * (largest / counts) ** balance), counts).astype(np.int64)
        self._counts, self._draws = counts, draws
        self._first_samples = np.cumsum(counts) - counts
        self._first_draws = np.cumsum(draws) - draws
        self.per_epoch = int(draws.sum())
        self.by_class = {
            int(name): (int(count), int(drawn))
            for name, count, drawn in zip(found, counts, draws, strict=True)
            if name >= 0
        }

    def sample(self, epoch: int, draw: int) -> int:
        """Return the sample number of a draw.

        Args:
            epoch: Number of the epoch, from 0.
            draw: 0 <= draw < per_epoch.
        """
        group = int(np.searchsorted(self._first_draws, draw, side="right")) - 1
        turn = epoch * int(self._draws[group]) + draw - int(self._first_draws[group])
        return int(self._samples[int(self._first_samples[group]) + turn % int(self._counts[group])])


@dataclass(frozen=True, eq=False)
class BalancedPlan(TrainingPlan):
    """A training plan of draws instead of samples: `samples` is the number of draws per epoch, `chunk_size` is 1.

    Attributes:
        draws: What is drawn.
    """

    draws: ClassDraws

    @classmethod
    def of(cls, source: str, draws: ClassDraws, unit_size: int, seed: int) -> "BalancedPlan":
        """Return the plan of a source.

        Args:
            source: Name of the source.
            draws: What is drawn.
            unit_size: Samples per unit.
            seed: Seed of the run.
        """
        return cls(source, draws.per_epoch, unit_size, chunk_size=1, seed=seed, draws=draws)

    def _rest_of_chunk(self, position: int) -> range:
        [draw] = super()._rest_of_chunk(position)
        sample = self.draws.sample(position // self.samples, draw)
        return range(sample, sample + 1)
