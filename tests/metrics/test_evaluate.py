"""Tests of evaluation: every valid sample counts once, over all ranks, for each subset of the modalities."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import forked_processes
import numpy as np
import pytest
import torch
from torch import Tensor, distributed
from torch.nn import functional

from perceiver_dist.config.best_metric import best_metrics
from perceiver_dist.data.batches import Batch
from perceiver_dist.metrics.evaluate import evaluate
from perceiver_dist.metrics.losses import loss_per_sample
from perceiver_dist.metrics.metric_totals import MetricTotals, Scores
from perceiver_dist.metrics.subsets import modality_subsets
from perceiver_dist.model.precision import autocast
from pipelines.shards.source import SourceConfig

CLASSES = 3
CPU = torch.device("cpu")
SOFTMAX = SourceConfig("clips", "x.tar", ["audio", "video"], CLASSES)
MULTILABEL = SourceConfig("clips", "x.tar", ["audio", "video"], CLASSES, task="multilabel")


class SummingEngine:
    """Engine whose logits are the sum of the present modalities; their arrays are logits (B, classes)."""

    def __init__(self) -> None:
        self.modes: list[str] = []

    def eval(self) -> None:
        self.modes.append("eval")

    def train(self) -> None:
        self.modes.append("train")

    def __call__(self, arrays: dict[str, Tensor], present: dict[str, Tensor], source: str) -> Tensor:
        assert source == "clips"
        return torch.stack([arrays[name] * present[name][:, None] for name in arrays]).sum(0)


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    join_group(0, 1, tmp_path_factory.mktemp("group"))
    yield
    distributed.destroy_process_group()


def join_group(rank: int, world_size: int, folder: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )


def make_batch(audio: Tensor, video: Tensor, labels: Tensor, valid: int) -> Batch:
    rows = torch.ones(len(labels), dtype=torch.bool)
    return Batch(
        unit=0,
        keys=[""] * len(labels),
        valid=torch.arange(len(labels)) < valid,
        labels=labels,
        arrays={"audio": audio, "video": video},
        present={"audio": rows, "video": rows.clone()},
        quarantined=[],
    )


def random_batches(multilabel: bool, valid_counts: tuple[int, ...], seed: int = 0) -> list[Batch]:
    """Return batches of 6 rows, of which the first `valid_counts` are valid; padded rows hold noise too."""
    draw = torch.Generator().manual_seed(seed)
    shape, most = ((6, CLASSES), 2) if multilabel else ((6,), CLASSES)
    return [
        make_batch(
            torch.randn(6, CLASSES, generator=draw),
            torch.randn(6, CLASSES, generator=draw),
            torch.randint(most, shape, generator=draw).to(torch.uint8 if multilabel else torch.int64),
            valid,
        )
        for valid in valid_counts
    ]


def scores_of(source: SourceConfig, batches: list[Batch]) -> Scores:
    return evaluate(SummingEngine(), CPU, source, batches, modality_subsets(source.modalities), "fp32")


def valid_rows(batches: list[Batch], names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Return logits (samples, classes) and labels of the valid rows, with these modalities only."""
    logits = [torch.stack([batch.arrays[name] for name in names]).sum(0)[batch.valid] for batch in batches]
    return torch.cat(logits), torch.cat([batch.labels[batch.valid] for batch in batches])


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean over the positives of the precision at the positive's rank; all scores differ."""
    ranked = truth[np.argsort(-scores)]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float(precision[ranked == 1].mean())


def test_the_set_of_all_modalities_is_the_first_subset() -> None:
    assert modality_subsets(["audio", "video"]) == [("audio", "video"), ("audio",), ("video",)]
    assert modality_subsets(["image"]) == [("image",)]
    assert len(modality_subsets(["image", "audio", "video"])) == 7


def test_accuracy_and_confusion_matrix_of_known_predictions() -> None:
    logits = functional.one_hot(torch.tensor([0, 1, 2, 2, 1, 0])).float()
    batch = make_batch(logits, torch.zeros(6, CLASSES), torch.tensor([0, 1, 2, 1, 1, 0]), valid=5)
    scores = scores_of(SOFTMAX, [batch])
    assert scores.confusion is not None
    assert scores.confusion.matrix.tolist() == [[1, 0, 0], [0, 2, 1], [0, 0, 1]]
    assert scores.metrics["accuracy"] == pytest.approx(4 / 5)
    assert scores.metrics["samples"] == 5
    assert scores.metrics["accuracy_video_only"] == pytest.approx(
        1 / 5
    )  # All logits are 0, which predicts class 0.


@pytest.mark.parametrize(
    ("suffix", "names"), [("", ("audio", "video")), ("_audio_only", ("audio",)), ("_video_only", ("video",))]
)
def test_each_subset_counts_valid_rows_only(suffix: str, names: tuple[str, ...]) -> None:
    batches = random_batches(False, (6, 4, 0))
    metrics = scores_of(SOFTMAX, batches).metrics
    logits, labels = valid_rows(batches, names)
    assert metrics["samples"] == len(labels) == 10
    assert metrics[f"accuracy{suffix}"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert metrics[f"loss{suffix}"] == pytest.approx(functional.cross_entropy(logits, labels).item())


def test_metrics_of_subsets_are_named_by_their_modalities() -> None:
    source = SourceConfig("clips", "x.tar", ["image", "audio", "video"], CLASSES)
    metrics = scores_of(source, random_batches(False, (6,))).metrics
    assert {name for name in metrics if name.startswith("accuracy")} == {
        "accuracy",
        "accuracy_image_and_audio_only",
        "accuracy_image_and_video_only",
        "accuracy_audio_and_video_only",
        "accuracy_image_only",
        "accuracy_audio_only",
        "accuracy_video_only",
    }


def test_the_engine_returns_to_training_mode() -> None:
    engine = SummingEngine()
    evaluate(engine, CPU, SOFTMAX, random_batches(False, (6,)), [("audio", "video")], "fp32")
    assert engine.modes == ["eval", "train"]


def test_mean_average_precision_follows_its_definition() -> None:
    batches = random_batches(True, (6, 6, 5))
    scores = scores_of(MULTILABEL, batches)
    logits, labels = valid_rows(batches, ("audio", "video"))
    expected = [average_precision(logits[:, c].numpy(), labels[:, c].numpy()) for c in range(CLASSES)]
    assert scores.metrics["mean_average_precision"] == pytest.approx(np.mean(expected))
    assert scores.confusion is None
    assert scores.metrics["samples"] == 17


def test_roc_auc_and_d_prime_follow_their_definitions() -> None:
    batches = random_batches(True, (6, 6, 5))
    metrics = scores_of(MULTILABEL, batches).metrics
    logits, labels = valid_rows(batches, ("audio", "video"))
    areas = []
    for scores, truth in zip(logits.T, labels.T, strict=True):
        # The area is the probability that a positive scores above a negative.
        above = scores[truth == 1][:, None] > scores[truth == 0][None, :]
        areas.append(above.float().mean().item())
    assert metrics["roc_auc"] == pytest.approx(np.mean(areas))
    normal = torch.distributions.Normal(0.0, 1.0)
    area: Tensor = normal.cdf(  # type: ignore[no-untyped-call]  # torch does not annotate it
        torch.tensor(metrics["d_prime"] / math.sqrt(2))
    )
    assert area.item() == pytest.approx(np.mean(areas))


def test_perfect_separation_has_a_finite_d_prime() -> None:
    labels = torch.tensor([[1, 0, 1]] * 3 + [[0, 1, 0]] * 3, dtype=torch.uint8)
    batch = make_batch(10.0 * labels - 5, torch.zeros(6, CLASSES), labels, valid=6)
    metrics = scores_of(MULTILABEL, [batch]).metrics
    assert metrics["roc_auc"] == 1
    assert 8 < metrics["d_prime"] < 9


def test_top_5_accuracy_of_many_classes() -> None:
    classes = 20
    source = SourceConfig("clips", "x.tar", ["audio", "video"], classes)
    logits = torch.arange(classes).expand(6, -1).float()
    batch = make_batch(logits, torch.zeros(6, classes), torch.tensor([19, 15, 14, 0, 17, 3]), valid=5)
    metrics = scores_of(source, [batch]).metrics
    assert metrics["accuracy"] == pytest.approx(1 / 5)
    assert metrics["top_5_accuracy"] == pytest.approx(3 / 5)


def test_mean_average_precision_ignores_classes_without_positives() -> None:
    (batch,) = random_batches(True, (6,))
    batch.labels[:, 2] = 0
    logits, labels = valid_rows([batch], ("audio", "video"))
    found = [average_precision(logits[:, c].numpy(), labels[:, c].numpy()) for c in (0, 1)]
    metrics = scores_of(MULTILABEL, [batch]).metrics
    assert metrics["mean_average_precision"] == pytest.approx(np.mean(found))
    assert metrics["classes_with_positives"] == 2
    assert "classes_with_positives_audio_only" not in metrics


def test_loss_of_known_logits() -> None:
    logits = torch.zeros(2, 4)
    assert loss_per_sample(logits, torch.tensor([0, 3]), "softmax").tolist() == pytest.approx(
        [math.log(4)] * 2
    )
    labels = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.uint8)
    assert loss_per_sample(logits, labels, "multilabel").tolist() == pytest.approx([math.log(2)] * 2)


@pytest.mark.parametrize("source", [SOFTMAX, MULTILABEL, replace(SOFTMAX, num_classes=20)])
def test_every_evaluation_has_the_metrics_that_choose_the_best_checkpoint(source: SourceConfig) -> None:
    totals = MetricTotals(source, CPU)
    labels = torch.zeros((4, source.num_classes) if source.task == "multilabel" else 4, dtype=torch.int64)
    totals.update(torch.zeros(4, source.num_classes), labels, torch.ones(4, dtype=torch.bool))
    metrics = totals.compute().metrics
    counts = {"samples", "classes_with_positives", "classes_with_both"}
    assert set(best_metrics(source)) == set(metrics) - counts


@pytest.mark.parametrize("task", ["softmax", "multilabel"])
def test_label_smoothing_spreads_a_share_of_each_label(task: str) -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=random)
    classes = torch.randint(0, 4, (6,), generator=random)
    one_hot = torch.nn.functional.one_hot(classes, 4)
    if task == "softmax":
        expected = -((0.9 * one_hot + 0.1 / 4) * logits.log_softmax(1)).sum(1)
        found = loss_per_sample(logits, classes, task, 0.1)
    else:
        soft = 0.9 * one_hot + 0.1 / 2
        expected = -(soft * logits.sigmoid().log() + (1 - soft) * (1 - logits.sigmoid()).log()).mean(1)
        found = loss_per_sample(logits, one_hot, task, 0.1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_sets_the_dtype_of_matrix_products(precision: str, dtype: torch.dtype) -> None:
    with autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def _score_as_rank(rank: int, folder: Path) -> None:
    """Evaluate as rank 0, which has all valid rows, or as rank 1, which has only padded ones."""
    torch.set_num_threads(1)
    join_group(rank, 2, folder)
    valid_counts = ((6, 4), (0, 0))[rank]
    scores = [
        scores_of(source, random_batches(source is MULTILABEL, valid_counts, seed=rank))
        for source in (SOFTMAX, MULTILABEL)
    ]
    torch.save([each.metrics for each in scores], folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_a_rank_with_only_padded_rows_changes_nothing(tmp_path: Path) -> None:
    forked_processes.call(_score_as_rank, (tmp_path,), 2)
    alone = [
        scores_of(source, random_batches(source is MULTILABEL, (6, 4))).metrics
        for source in (SOFTMAX, MULTILABEL)
    ]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found == [pytest.approx(metrics) for metrics in alone]
