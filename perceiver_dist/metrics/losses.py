"""Loss of each sample, by task: the same in training and evaluation, except for label smoothing."""

import torch
from torch import Tensor
from torch.nn import functional


def loss_per_sample(logits: Tensor, labels: Tensor, task: str, label_smoothing: float = 0.0) -> Tensor:
    """Return the loss of each sample.

    Label smoothing (Szegedy et al. 2015, arXiv 1512.00567) mixes the labels with an even distribution: over the
    classes, as in the authors' code; or for multilabel, where each class is a decision between two, over these two.

    Args:
        logits: (B, classes).
        labels: (B,) int64 for softmax, (B, classes) for multilabel.
        task: softmax (cross entropy) or multilabel (binary cross entropy, mean over classes).
        label_smoothing: Share of the even distribution, 0 to 1.

    Returns:
        (B,) losses in nats.
    """
    if task == "softmax":
        return functional.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    targets = labels.to(logits.dtype)
    if label_smoothing:
        targets = targets.lerp(torch.full_like(targets, 0.5), label_smoothing)
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
