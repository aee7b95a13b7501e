"""Undefined metrics are named with the reason, for what evaluations really return."""

from typing import Any

import pytest
import torch
from scoring_ranks import metrics_of

from perceiver_dist.metrics.undefined import why_undefined
from pipelines.shards.source import SourceConfig

ALL = torch.ones(4, dtype=torch.bool)
ZEROS = torch.zeros(4, 3)
ONE_HOT = torch.eye(3)[[0, 1, 2, 0]]


def reason(task: Any, logits: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor = ALL) -> str:
    source = SourceConfig("things", "x.tar", ["image"], 3, task=task)
    return why_undefined("things", metrics_of(source, [(logits, labels, valid)]))


def test_nothing_is_said_of_what_is_defined() -> None:
    assert reason("softmax", ONE_HOT, torch.tensor([0, 0, 0, 0])) == ""
    assert reason("multilabel", ONE_HOT, ONE_HOT.byte()) == ""
    assert reason("multilabel", ONE_HOT, torch.tensor([[1, 0, 0], [0, 0, 0]] * 2).byte()) == ""


@pytest.mark.parametrize(
    ("task", "labels", "names"),
    [
        ("softmax", torch.zeros(4, dtype=torch.long), "loss, accuracy"),
        ("multilabel", ONE_HOT.byte(), "loss, mean_average_precision, roc_auc, d_prime"),
    ],
)
def test_no_usable_sample(task: str, labels: torch.Tensor, names: str) -> None:
    assert reason(task, ZEROS, labels, ~ALL) == (
        f"source 'things': {names} cannot be computed: no held-out sample can be used; check the held-out shards and "
        "their labels"
    )


def test_no_positives_and_no_negatives() -> None:
    assert reason("multilabel", ZEROS, ZEROS.byte()) == (
        "source 'things': mean_average_precision, roc_auc, d_prime cannot be computed: no class has a positive among "
        "the 4 held-out samples; check their labels"
    )
    assert reason("multilabel", ZEROS, (ZEROS + 1).byte()) == (
        "source 'things': roc_auc, d_prime cannot be computed: no class has positives and negatives among the 4 "
        "held-out samples"
    )


def test_outputs_that_are_nan() -> None:
    assert reason("softmax", ZEROS / 0, torch.zeros(4, dtype=torch.long)) == (
        "source 'things': loss, accuracy cannot be computed: the model's outputs are not finite"
    )
