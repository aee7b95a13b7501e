"""MixUp (Zhang et al. 2018, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899).

Each image of a unit is mixed with another image of the unit: blended (MixUp), or given a rectangle of it (CutMix). The
loss is mixed in the same proportion. That equals mixing the labels, because both losses used here are linear in them.
The mix is drawn from the run's seed, the source and the unit's number, so that a resumed run repeats it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from perceiver_dist.data.batches import Batch
from perceiver_dist.data.device_copies import copies_to
from perceiver_dist.metrics.losses import loss_per_sample
from pipelines.permutation import hash64
from pipelines.shards.source import SourceConfig


@dataclass(frozen=True)
class Mixed:
    """Arrays of a unit after mixing, and the composition of its rows.

    Attributes:
        arrays: Modality -> (B, *array_shape), in the dtype of the decoder.
        other: (B,) int64, the row with which each row is mixed; empty if nothing is mixed.
        share: (B,) fp32, share of the row itself; the rest is the other row's. None if nothing is mixed.
    """

    arrays: dict[str, Tensor]
    other: Tensor
    share: Tensor | None

    def loss(self, logits: Tensor, labels: Tensor, task: str, label_smoothing: float) -> Tensor:
        """Return the mean loss of the unit.

        Args:
            logits: (B, classes).
            labels: As in a `Batch`, of the unmixed rows.
            task: softmax or multilabel.
            label_smoothing: As in `loss_per_sample`.

        Returns:
            () loss in nats.
        """
        own = loss_per_sample(logits, labels, task, label_smoothing)
        if self.share is None:
            return own.mean()
        others = loss_per_sample(logits, labels[self.other], task, label_smoothing)
        return (self.share * own + (1 - self.share) * others).mean()


def mix(batch: Batch, source: SourceConfig, seed: int) -> Mixed:
    """Mix the images of a unit according to the source's `augment` options.

    Args:
        batch: The unit.
        source: Source of the unit. Sources that mix have images only.
        seed: Seed of the run.
    """
    augment = source.augment
    strengths = {"mixup": augment.mixup, "cutmix": augment.cutmix}
    kinds = [kind for kind, strength in strengths.items() if strength]
    if not kinds:
        return Mixed(batch.arrays, torch.empty(0, dtype=torch.int64), None)
    # Keyed by the unit, so that every rank and every resumed run draws the same mix.
    random = np.random.default_rng(hash64(seed, source.name, "mix", batch.unit))
    kind = kinds[random.integers(len(kinds))]
    share = random.beta(strengths[kind], strengths[kind])
    partners = random.permutation(len(batch.keys))
    images = batch.arrays["image"]
    height, width = images.shape[1:3]
    rectangle: tuple[int, int, int, int] | None = None
    if kind == "cutmix":
        top, left, bottom, right = rectangle = _rectangle(1 - share, height, width, random)
        area = (bottom - top) * (right - left) / (height * width)
    # A row without an image of its own or a partner with one stays as it is.
    has_image = batch.present["image"].numpy()
    both = has_image & has_image[partners]
    # Clipping has changed the rectangle's area.
    own_share = share if rectangle is None else 1 - area
    sent = copies_to(images.device).send(
        {"other": partners, "both": both, "share": np.where(both, own_share, 1.0).astype(np.float32)}
    )
    other = sent["other"]
    if rectangle is None:
        blended = share * images.float() + (1 - share) * images[other].float()
        mixed = blended.round().to(images.dtype)
    else:
        mixed = images.clone()
        mixed[:, top:bottom, left:right] = images[other, top:bottom, left:right]
    shown = torch.where(sent["both"][:, None, None, None], mixed, images)
    return Mixed({"image": shown}, other, sent["share"])


def _rectangle(
    area: float, height: int, width: int, random: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return top, left, bottom and right of a rectangle with the picture's aspect ratio, clipped at the edges.

    Its centre is uniform over the picture, as in the paper.
    """
    high, wide = height * area**0.5, width * area**0.5
    row, column = random.uniform(0, height), random.uniform(0, width)
    top, bottom = (round(float(np.clip(row + side * high / 2, 0, height))) for side in (-1, 1))
    left, right = (round(float(np.clip(column + side * wide / 2, 0, width))) for side in (-1, 1))
    return top, left, bottom, right
