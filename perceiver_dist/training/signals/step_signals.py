"""Signals of a rank's steps: attention and latents by source, norms by part, and how many steps were clipped.

Attention is measured at the last step of each source before a log, norms at the step that is logged. Other steps do no
more than compare their gradient's norm with `optim.clip_norm`. All signals are functions of the weights and samples of
a step, so a run that resumes between has the same ones, or lacks those of sources whose step was before the checkpoint;
only the share of clipped steps is then over fewer steps.
"""

import math
from typing import Any

import torch
from torch import Tensor, distributed

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.model.observation.forward_watch import ForwardWatch
from perceiver_dist.training.signals.norms_by_part import StepNorms
from pipelines.units.schedule import Schedule


class StepSignals:
    """Signals since the last log. Every rank has one, and calls the same methods at the same steps.

    Args:
        engine: The DeepSpeed engine.
        config: The run's configuration.
        schedule: Which source each step learns from.
    """

    def __init__(self, engine: Any, config: RunConfig, schedule: Schedule) -> None:
        self._engine, self._config, self._schedule = engine, config, schedule
        self._clip_norm = config.optim.clip_norm
        self._clipped = torch.zeros((), device=engine.device)
        self._steps = 0
        self._watch: ForwardWatch | None = None
        self._norms: StepNorms | None = None
        self._attention: dict[str, Tensor] = {}
        self._by_part: dict[str, dict[str, float]] = {}

    def begin_step(self, step: int) -> None:
        """Watch the step's first forward pass, if it is the last of its source before the next log.

        Args:
            step: Optimizer steps taken before.
        """
        source, log = self._schedule.source_at(step), self._next_log(step)
        if all(self._schedule.source_at(later) != source for later in range(step + 1, log)):
            self._watch = ForwardWatch(self._config.model.cross_attends)
            self._engine.module.observer = self._watch

    def before_update(self, step: int) -> None:
        """Copy the weights, if the engine's next call of `step` updates them and the step is logged.

        Args:
            step: Optimizer steps taken before.
        """
        if step + 1 == self._next_log(step) and self._engine.is_gradient_accumulation_boundary():
            self._norms = StepNorms(self._engine)

    def end_step(self, step: int) -> None:
        """Take the signals of a step. Collective at steps that are logged.

        Args:
            step: Optimizer steps taken before.
        """
        if self._watch is not None:
            attention, cosine = self._watch.statistics()
            self._attention[self._schedule.source_at(step)] = torch.cat([attention.flatten(), cosine[None]])
            self._watch = self._engine.module.observer = None
        if self._norms is not None:
            self._by_part = self._norms.after_step(self._clip_norm)
            self._norms = None
        norm = self._engine.get_global_grad_norm()
        # Without waiting: at stages 1 and 2 the norm is on the device.
        self._clipped += math.nan if norm is None else norm > self._clip_norm
        self._steps += 1

    def close(self) -> dict[str, float]:
        """Return the signals since the last log, and reset. Every rank must call it.

        Returns:
            Values by name. For each source: "entropy/SOURCE/T" and "saturated/SOURCE/T" of the T-th cross-attend from
            1, and "latent_cosine/SOURCE" (see `ForwardWatch`). For each part of the model: "weight_norm/PART",
            "gradient_norm/PART" and "update_ratio/PART" (see `StepNorms`). "clipped": share of the steps whose gradient
            was clipped; without `optim.clip_norm` it is left out.
        """
        named: dict[str, float] = {}
        if self._attention:
            rows = torch.stack(list(self._attention.values())).double()
            distributed.all_reduce(rows)
            rows /= distributed.get_world_size()
            for source, (*attention, cosine) in zip(self._attention, rows.tolist(), strict=True):
                for number in range(len(attention) // 2):
                    named[f"entropy/{source}/{number + 1}"] = attention[2 * number]
                    named[f"saturated/{source}/{number + 1}"] = attention[2 * number + 1]
                named[f"latent_cosine/{source}"] = cosine
        named |= {
            f"{kind}/{part}": value for part, kinds in self._by_part.items() for kind, value in kinds.items()
        }
        if self._clip_norm and self._steps:
            named["clipped"] = self._clipped.item() / self._steps
        self._clipped.zero_()
        self._steps = 0
        self._attention, self._by_part = {}, {}
        return {name: value for name, value in named.items() if math.isfinite(value)}

    def _next_log(self, step: int) -> int:
        """Return the number of steps taken at the first log after `step` steps."""
        every = self._config.train.log_every
        return min((step // every + 1) * every, self._config.last_step)
