"""Norms of the weights, the gradient and the update of an optimizer step, by part of the model.

Each rank copies its spans of the weights and of the first moment before a step, and compares them after it:

    update = w' - w,        gradient = (m' - beta1 * m) / (1 - beta1),

since the first moment of AdamW and LAMB is m' = beta1 * m + (1 - beta1) * gradient. That needs no hold on DeepSpeed's
buffers of gradients, which differ by ZeRO stage and are empty after a step, and it works the same at every stage. The
gradient is the clipped one; the factor is known from its global norm. Sums of squares are added over the ranks.
"""

import math
from typing import Any

import torch
from torch import Tensor

from perceiver_dist.checkpoint.format import MOMENTS, WEIGHT
from perceiver_dist.training.zero.optimizer import base_optimizer
from perceiver_dist.training.zero.partitions import held_spans


class StepNorms:
    """Norms of one optimizer step. Make it between the last backward pass and the step.

    Args:
        engine: The DeepSpeed engine.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        # Views of the training state, which the step changes in place, and copies of it.
        self._weights, self._moments = (held_spans(engine, part) for part in (WEIGHT, MOMENTS[0]))
        self._before = [values.clone() for values in self._weights.values()]
        self._gradients = [values.clone() for values in self._moments.values()]

    @torch.no_grad()
    def after_step(self, clip_norm: float) -> dict[str, dict[str, float]]:
        """Return the norms of the step that was taken. Every rank must call it, once; it waits for the device.

        Args:
            clip_norm: Global norm to which the gradient was clipped; 0 for none.

        Returns:
            By part of the model (the first name of its parameters): "weight_norm", after the step; "gradient_norm",
            before clipping, left out if the global norm is not finite; and "update_ratio", the norm of the update
            divided by that of the weights before the step, left out if they were 0.
        """
        weights, updates, gradients = list(self._weights.values()), self._before, self._gradients
        parts = list(dict.fromkeys(_part(name) for name, _ in self._engine.module.named_parameters()))
        places = torch.tensor([parts.index(_part(name)) for name in self._weights], dtype=torch.int64)
        squares = torch.zeros(4, len(parts), dtype=torch.float64, device=self._engine.device)
        if weights:
            self._add(squares[0], places, weights)
            self._add(squares[1], places, updates)
            beta1, _ = base_optimizer(self._engine).param_groups[0]["betas"]
            torch._foreach_sub_(updates, weights)
            torch._foreach_mul_(gradients, -beta1)
            torch._foreach_add_(gradients, list(self._moments.values()))
            torch._foreach_div_(gradients, 1 - beta1)
            self._add(squares[2], places, updates)
            self._add(squares[3], places, gradients)
        if self._engine.zero_optimization_stage():
            torch.distributed.all_reduce(squares)
        return _named(parts, squares.sqrt().tolist(), self._unclipped(clip_norm))

    @staticmethod
    def _add(row: Tensor, places: Tensor, values: list[Tensor]) -> None:
        norms = torch.stack(torch._foreach_norm(values, 2, dtype=torch.float64))
        row.index_add_(0, places.to(row.device), norms.square().to(row.device))

    def _unclipped(self, clip_norm: float) -> float:
        """Return the factor from the clipped gradient to the gradient; NaN if the step was skipped."""
        norm = self._engine.get_global_grad_norm()
        norm = math.nan if norm is None else float(norm)
        if not math.isfinite(norm):
            return math.nan
        # As DeepSpeed and torch compute it.
        return max(1.0, (norm + 1e-6) / clip_norm) if clip_norm else 1.0


def _named(parts: list[str], norms: list[list[float]], unclipped: float) -> dict[str, dict[str, float]]:
    named = {}
    for part, weight, before, update, gradient in zip(parts, *norms, strict=True):
        named[part] = {"weight_norm": weight}
        if math.isfinite(unclipped):
            named[part]["gradient_norm"] = gradient * unclipped
        if before > 0:
            named[part]["update_ratio"] = update / before
    return named


def _part(name: str) -> str:
    """Return the part of the model that a parameter belongs to, such as cross_attends."""
    return name.partition(".")[0]
