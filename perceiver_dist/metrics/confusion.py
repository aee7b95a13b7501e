"""Confusion matrix as the pairs of classes that occur.

Of 10,000 classes the matrix has 100 million cells, 800 MB, of which a held-out set of 50,000 samples fills at most
50,000. So nothing here has the size of the square of the classes but `Confusion.matrix`, for as many as can be drawn.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from perceiver_dist.metrics.over_ranks import gathered

_MERGED_ROWS = 1 << 16
"""Predictions that are kept until they are merged into the counts: half a megabyte, and few enough merges that waiting
for the device at each does not count."""


@dataclass(frozen=True)
class Confusion:
    """Counts of the pairs of true and predicted class that occur, in the order of true, then of predicted classes.

    Attributes:
        classes: Number of classes.
        true: (pairs,) int64 true classes.
        predicted: (pairs,) int64 predicted classes.
        counts: (pairs,) int64 samples of the pair, at least 1.
    """

    classes: int
    true: np.ndarray
    predicted: np.ndarray
    counts: np.ndarray

    @property
    def correct(self) -> int:
        """Number of samples whose class is predicted."""
        return int(self.counts[self.true == self.predicted].sum())

    @property
    def matrix(self) -> np.ndarray:
        """(classes, classes) int64 counts, rows true and columns predicted; for few classes."""
        cells = np.zeros((self.classes, self.classes), np.int64)
        cells[self.true, self.predicted] = self.counts
        return cells

    def confusions(self, most: int) -> list[tuple[int, int, int]]:
        """Return true class, predicted class and number of samples of the most frequent mistakes, most frequent first.

        Args:
            most: Maximum number of pairs.
        """
        wrong = np.flatnonzero(self.true != self.predicted)
        # Stable, so that equal counts stay in the order of the classes.
        first = wrong[np.argsort(-self.counts[wrong], kind="stable")[:most]]
        columns = (self.true[first], self.predicted[first], self.counts[first])
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def by_class(self) -> dict[str, list[float]]:
        """Return the number of samples, precision, recall and F1 of every class.

        Recall is NaN for a class that never occurs, precision for one that is never predicted, F1 if both.
        """
        right = self.true == self.predicted

        def samples_of(classes: np.ndarray, counts: np.ndarray) -> np.ndarray:
            return np.bincount(classes, weights=counts, minlength=self.classes)

        true, predicted = samples_of(self.true, self.counts), samples_of(self.predicted, self.counts)
        correct = samples_of(self.true[right], self.counts[right])
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, as it should be
            return {
                "samples": true.astype(np.int64).tolist(),
                "precision": (correct / predicted).tolist(),
                "recall": (correct / true).tolist(),
                "f1": (2 * correct / (true + predicted)).tolist(),
            }


class PairCounts:
    """Running counts of pairs of true and predicted class, on a device.

    Args:
        classes: Number of classes.
        device: Device of the labels.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self._classes = classes
        # A pair is numbered as its cell of the matrix.
        self._cells = torch.zeros(0, dtype=torch.int64, device=device)
        self._counts = torch.zeros_like(self._cells)
        self._waiting: list[Tensor] = []
        self._rows = 0

    def add(self, labels: Tensor, predicted: Tensor) -> None:
        """Count predictions.

        Args:
            labels: (B,) int64 true classes.
            predicted: (B,) int64 predicted classes.
        """
        self._waiting.append(labels * self._classes + predicted)
        self._rows += len(labels)
        # The more pairs there are, the more a merge takes, so there are fewer of them.
        if self._rows >= max(_MERGED_ROWS, len(self._cells)):
            self._merge()

    def confusion(self) -> Confusion:
        """Return the counts over all ranks; every rank must call this."""
        self._merge()
        cells, counts = _added_up(gathered(self._cells), gathered(self._counts))
        true, predicted = np.divmod(cells.cpu().numpy(), self._classes)
        return Confusion(self._classes, true, predicted, counts.cpu().numpy())

    def _merge(self) -> None:
        cells = torch.cat([self._cells, *self._waiting])
        ones = torch.ones_like(cells[len(self._cells) :])
        self._cells, self._counts = _added_up(cells, torch.cat([self._counts, ones]))
        self._waiting, self._rows = [], 0


def _added_up(cells: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different cells in order, and the sum of the counts of each."""
    different, positions = torch.unique(cells, return_inverse=True)
    return different, torch.zeros_like(different).index_add_(0, positions, counts)
