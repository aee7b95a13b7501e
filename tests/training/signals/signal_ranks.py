"""Training with real DeepSpeed engines, with and without signals, and the norms of a step from whole tensors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import ranks
import torch
from torch import Tensor, distributed

CLIP_NORM = 1.0


def train(world_size: int, _: Path, stage: int, optimizer: str, watched: bool) -> list[dict[str, float]]:
    """Take all steps with a log every four; return the losses, and with `watched` the signals of each log."""
    from perceiver_dist.training.signals.step_signals import StepSignals
    from pipelines.units.schedule import Schedule

    engine = ranks.make_engine(world_size, stage, None, optimizer)
    config = replace(ranks.CONFIG, train=replace(ranks.CONFIG.train, log_every=4))
    signals = StepSignals(engine, config, Schedule(config.weights)) if watched else None
    losses: list[dict[str, float]] = []
    logs: list[dict[str, float]] = []
    for step in range(ranks.STEPS):
        if signals:
            signals.begin_step(step)
        total = torch.zeros(())
        for lane in range(distributed.get_rank(), ranks.LANES, world_size):
            loss = ranks.lane_loss(engine, step, lane)
            engine.backward(loss)
            if signals:
                signals.before_update(step)
            engine.step()
            total += loss.detach() / ranks.LANES
        distributed.all_reduce(total)
        losses.append({"loss": total.item()})
        if signals:
            signals.end_step(step)
            if (step + 1) % 4 == 0:
                logs.append({**signals.close(), "global_norm": float(engine.get_global_grad_norm())})
    return losses + logs


def norms_of_whole_tensors(_: int, __: Path, optimizer: str) -> list[dict[str, float]]:
    """Return the norms of the fourth step on one rank at stage 0, from its gradients and weights before and after."""
    engine = ranks.make_engine(1, 0, None, optimizer)
    before: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    for step in range(4):
        for lane in range(ranks.LANES):
            engine.backward(ranks.lane_loss(engine, step, lane))
            parameters = dict(engine.module.named_parameters())
            before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            gradients = {name: _gradient(parameter) for name, parameter in parameters.items()}
            engine.step()
    after = dict(engine.module.named_parameters())
    updates = {name: after[name].detach() - before[name] for name in after}
    norms: dict[str, float] = {}
    for part in dict.fromkeys(name.partition(".")[0] for name in after):
        norms[f"weight_norm/{part}"] = _norm(after, part)
        norms[f"gradient_norm/{part}"] = _norm(gradients, part)
        norms[f"update_ratio/{part}"] = _norm(updates, part) / _norm(before, part)
    return [norms]


def _gradient(parameter: Any) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()


def _norm(tensors: dict[str, Tensor], part: str) -> float:
    of_part = [
        tensor.detach().flatten() for name, tensor in tensors.items() if name.partition(".")[0] == part
    ]
    return torch.cat(of_part).norm().item()
