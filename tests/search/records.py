"""Synthetic record of a search of 14 trials near its end: narrow shapes with many latents are best."""

import math

from perceiver_dist.search.study.search_record import (
    SearchRecord,
    Trial,
    TrialCost,
    TrialEvaluation,
    TrialState,
)

SPACE = {
    "model.latents": [16, 32, 64, 128],
    "model.width": [32, 64, 96, 128],
    "model.cross_attends": {"low": 1, "high": 4},
    "optim.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "model.share_cross_attends": ["all", "all_but_first", "none"],
}
STEPS = 1500
EVALUATIONS = 3

CANDIDATES: list[tuple[int, int, int, float, str, TrialState, int]] = [
    (32, 64, 2, 2e-3, "all_but_first", "completed", 3),
    (16, 96, 1, 2.4e-4, "all", "stopped", 1),
    (64, 32, 2, 1.7e-3, "none", "completed", 3),
    (128, 128, 1, 8.9e-3, "all_but_first", "failed", 0),
    (64, 64, 3, 1.1e-3, "all_but_first", "completed", 3),
    (16, 32, 4, 3.1e-3, "all", "stopped", 2),
    (128, 32, 2, 2.6e-3, "all_but_first", "completed", 3),
    (32, 96, 3, 1.3e-4, "none", "stopped", 1),
    (32, 32, 1, 4.4e-3, "all", "completed", 3),
    (16, 128, 2, 6.8e-3, "none", "stopped", 1),
    (64, 96, 1, 5.3e-4, "all", "stopped", 2),
    (128, 64, 2, 9.5e-4, "all", "completed", 3),
    (64, 32, 4, 1.9e-3, "all_but_first", "running", 1),
    (32, 128, 3, 3.6e-3, "none", "running", 0),
]
REASONS = {"stopped": "not among the best 1/3 at evaluation {}", "failed": "out of memory on a rank"}


def record_of_search(trials: int = len(CANDIDATES), baseline: bool = True) -> SearchRecord:
    """Return the record with its first trials; trial 0 is the baseline unless there is none."""
    options = {"name": "shapes", "trials": 16, "space": SPACE, "baseline": baseline, "metric": "mean"}
    return SearchRecord(
        options=options,
        trials=[_trial(number) for number in range(trials)],
        rejected={"max_parameters": 3, "already tried": 1},
        seconds=5230.0,
    )


def _trial(number: int) -> Trial:
    latents, width, cross_attends, learning_rate, sharing, state, evaluations = CANDIDATES[number]
    values = (latents, width, cross_attends, learning_rate, sharing)
    cost = _cost(latents, width, cross_attends, sharing == "none")
    step = STEPS * evaluations // EVALUATIONS
    if state in ("running", "failed"):
        step += 120
    return Trial(
        number=number,
        values=dict(zip(SPACE, values, strict=True)),
        cost=cost,
        state=state,
        reason=REASONS.get(state, "").format(evaluations),
        evaluations=[_evaluation(values, index + 1) for index in range(evaluations)],
        step=step,
        samples=step * 64,
        seconds=step * cost.flops_per_sample / 4e7,
        mlflow_run_id=f"{number:032x}",
    )


def _cost(latents: int, width: int, cross_attends: int, shared_none: bool) -> TrialCost:
    weights = 12 * width**2 * (cross_attends if shared_none else 1) * 2 + 40 * width + latents * width
    flops = 2.0 * latents * width * (12 * width + 196 + latents) * cross_attends * 2
    return TrialCost(weights, flops, 16 * weights + 64 * int(flops / 8), STEPS, 3 * flops * 64 * STEPS)


def _evaluation(values: tuple[int, int, int, float, str], number: int) -> TrialEvaluation:
    latents, width, cross_attends, learning_rate, sharing = values
    final = 0.78 + 0.03 * math.log2(latents / 16) - 0.015 * math.log2(width / 32)
    final += 0.02 * cross_attends - 0.25 * math.log10(learning_rate / 2e-3) ** 2
    final += 0.008 * (sharing == "none")
    score = round(final * (1 - 0.5 * 0.35**number), 4)
    return TrialEvaluation(number, STEPS * number // EVALUATIONS, score, {"fashion/accuracy": score})
