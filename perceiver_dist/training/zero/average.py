"""Exponential moving average of the weights (Polyak and Juditsky 1992), which evaluations use instead of the weights.

After every step that was taken, with the rate of the decay d:

    average  <-  average + (1 - d) * (weights - average),          d = min(optim.ema_decay, (1 + t) / (10 + t))

in step t, counted from 1: the initial weights, of which the average begins as a copy, are soon forgotten. t is the
optimizer's own count, so the average is a function of the weights so far, and exact on resume.

It lies beside the moments in the optimizer's state. So it is fp32, each rank has its partition, and it is saved and
loaded as they are, at any ZeRO stage and world size. For an evaluation every rank fills a model of its own with it.
That touches neither the state of training nor the copy that a checkpoint may be making of it.
"""

from typing import Any

import torch
from torch import distributed

from perceiver_dist.checkpoint.format import AVERAGE
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.model.perceiver import Perceiver
from perceiver_dist.training.zero.optimizer import base_optimizer
from perceiver_dist.training.zero.partitions import held_partitions


class WeightAverage:
    """Moving average of an engine's weights.

    Args:
        engine: The DeepSpeed engine, whose optimizer's state has the average.
        decay: `optim.ema_decay`.
        steps: Optimizer steps that were taken before.
    """

    def __init__(self, engine: Any, decay: float, steps: int) -> None:
        self._engine = engine
        self._decay = decay
        self._steps = steps

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after a step that was taken."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        state = base_optimizer(self._engine).state
        torch._foreach_lerp_([of_tensor[AVERAGE] for of_tensor in state.values()], list(state), 1 - decay)

    @torch.no_grad()
    def model(self, config: RunConfig) -> Perceiver:
        """Return a model that has the average as its weights, on the engine's device. Every rank must call this.

        Args:
            config: The run's configuration.
        """
        # What is drawn for the initial weights must not change what training draws.
        with torch.random.fork_rng(devices=[]):
            model = Perceiver(config.model, config.heads).to(self._engine.device)
        partitioned = self._engine.zero_optimization_stage() > 0
        held = {partition.name: partition for partition in held_partitions(self._engine, AVERAGE)}
        for name, parameter in model.named_parameters():
            whole = parameter.view(-1)
            whole.zero_()
            if name in held:
                values, start = held[name].values, held[name].start
                whole[start : start + values.numel()] = values
            if partitioned:
                # The spans of the ranks do not overlap, and adding zeros is exact.
                distributed.all_reduce(whole)
        return model
