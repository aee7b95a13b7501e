"""Several looks at one sample, each at another window in time, made one answer: their mean probabilities."""

import math

from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from perceiver_dist.errors import UserError
from pipelines.shards.source import SourceConfig

_IN_TIME = ("audio", "video")


def check_views(views: int, source: SourceConfig) -> None:
    """Make sure that a source can be looked at in several windows.

    Args:
        views: How many.
        source: The source.

    Raises:
        UserError: There are several, and nothing of the source has a length in time.
    """
    if views > 1 and not set(source.modalities) & set(_IN_TIME):
        raise UserError(
            f"--views is {views}, but source '{source.name}' has {' and '.join(source.modalities)}: views are windows "
            "in time, of sound and video; leave it out, or name another --source"
        )


def mean_logits(logits: Tensor, task: str) -> Tensor:
    """Return the logits of the mean probabilities, computed without leaving logarithms.

    Args:
        logits: (views, B, classes).
        task: softmax or multilabel.

    Returns:
        (B, classes); the logits as they are if there is one view.
    """
    if len(logits) == 1:
        return logits[0]
    if task == "softmax":
        return log_softmax(logits, -1).logsumexp(0) - math.log(len(logits))
    return logsigmoid(logits).logsumexp(0) - logsigmoid(-logits).logsumexp(0)
