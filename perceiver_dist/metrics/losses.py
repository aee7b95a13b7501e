"""Loss of each sample, by task: the same in training and evaluation."""

from torch import Tensor
from torch.nn import functional


def loss_per_sample(logits: Tensor, labels: Tensor, task: str) -> Tensor:
    """Return the loss of each sample.

    Args:
        logits: (B, classes).
        labels: (B,) int64 for softmax, (B, classes) for multilabel.
        task: softmax (cross entropy) or multilabel (binary cross entropy, mean over classes).

    Returns:
        (B,) losses in nats.
    """
    if task == "softmax":
        return functional.cross_entropy(logits, labels, reduction="none")
    return functional.binary_cross_entropy_with_logits(
        logits, labels.to(logits.dtype), reduction="none"
    ).mean(1)
