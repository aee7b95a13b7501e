"""Multi-view evaluation: logits of the mean probabilities over the views of a sample."""

import pytest
import torch

from perceiver_dist.errors import UserError
from perceiver_dist.inference.views import check_views, mean_logits
from pipelines.shards.source import SourceConfig

LOGITS = 4 * torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))  # (views, B, classes)


def test_softmax_of_the_mean_is_the_mean_of_the_softmax() -> None:
    found = mean_logits(LOGITS, "softmax").softmax(1)
    torch.testing.assert_close(found, LOGITS.softmax(2).mean(0))


def test_sigmoid_of_the_mean_is_the_mean_of_the_sigmoid() -> None:
    found = mean_logits(LOGITS, "multilabel").sigmoid()
    torch.testing.assert_close(found, LOGITS.sigmoid().mean(0))


@pytest.mark.parametrize("task", ["softmax", "multilabel"])
def test_logits_of_certain_predictions_are_finite(task: str) -> None:
    assert mean_logits(torch.tensor([[[200.0, -200.0]]] * 2), task).isfinite().all()


def test_one_view_is_unchanged() -> None:
    assert torch.equal(mean_logits(LOGITS[:1], "softmax"), LOGITS[0])


def test_views_of_sources_without_audio_or_video_are_rejected() -> None:
    check_views(4, SourceConfig("clips", "x.tar", ["video", "image"], 2))
    check_views(1, SourceConfig("photos", "x.tar", ["image"], 2))
    with pytest.raises(UserError, match="--views is 4, but source 'solids' has image and points: views are"):
        check_views(4, SourceConfig("solids", "x.tar", ["image", "points"], 2))
