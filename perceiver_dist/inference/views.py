"""Multi-view evaluation: the mean of the model's probabilities over several windows in time of a sample."""

import math

from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from perceiver_dist.errors import UserError
from pipelines.shards.source import SourceConfig

_TEMPORAL_MODALITIES = ("audio", "video")


def check_views(views: int, source: SourceConfig) -> None:
    """Check that a source supports a number of views.

    Args:
        views: Number of views.
        source: The source.

    Raises:
        UserError: There is more than one view, and no modality of the source extends in time.
    """
    if views > 1 and not set(source.modalities) & set(_TEMPORAL_MODALITIES):
        raise UserError(
            f"--views is {views}, but source '{source.name}' has {' and '.join(source.modalities)}: views are windows "
            "in time and need audio or video; leave out --views, or choose another --source"
        )


def mean_logits(logits: Tensor, task: str) -> Tensor:
    """Return the logits of the mean probabilities.

    The mean is taken in log space: a probability that is rounded to 0 or 1 has no finite logit.

    Args:
        logits: (views, B, classes).
        task: softmax or multilabel.

    Returns:
        (B, classes); the unchanged logits if there is one view.
    """
    if len(logits) == 1:
        return logits[0]
    if task == "softmax":
        return log_softmax(logits, -1).logsumexp(0) - math.log(len(logits))
    # log(p / (1 - p)) of the mean p; the number of views cancels.
    return logsigmoid(logits).logsumexp(0) - logsigmoid(-logits).logsumexp(0)
