"""Warnings about a run that does not learn: one line per cause, with what to do about it.

Three causes are looked for over the newest logs, from some time after the warm-up: a loss as high as that of guessing,
gradients of which nearly all are clipped to a fraction of their norm, and cross-attends in which nearly every latent
reads a single token, so that most tokens are read by none. Where there are as many latents as tokens, a latent for each
token is a good division of labour: that is how the default run learns images.
"""

import math
from collections import deque
from statistics import fmean, median

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.modalities import tokens
from perceiver_dist.training.tracker.logged_metrics import StepMetrics

_SHARE_OF_RUN = 0.02
_FEWEST_STEPS, _FEWEST_LOGS = 100, 5
"""Steps and logs that are looked at: a fiftieth of the run, and not so few that noise decides. For the loss of a source
these are steps of its own: a source with a small weight is learned later."""
_AT_CHANCE = 0.98
"""Loss, as a fraction of that of guessing evenly, above which nothing has been learned. After a fiftieth of a run even
a slow start is below: 6.77 of 6.91 with the 1,000 classes of ImageNet."""
_NEARLY_ALL = 0.95
"""Share of clipped steps, and of saturated rows of attention, which is reported."""

_FAR_ABOVE = 10.0
"""Median norm of the gradients, in units of `optim.clip_norm`, from which clipping is reported. AdamW does not mind
gradients that are all scaled down a little: the default run's are three to four times as long as the limit, and with a
limit of 10 it learned no better (docs/experiments.md)."""

_READ_ENOUGH = 0.5
"""Latents per token above which attention to single tokens is not reported: most tokens can have their own latent."""


class LearningWatch:
    """What a run's newest logs say about whether it learns.

    Args:
        config: The run's configuration.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        train = config.train
        self._steps = max(_FEWEST_STEPS, _FEWEST_LOGS * train.log_every, round(_SHARE_OF_RUN * train.steps))
        weights = sum(source.weight for source in config.sources)
        self._steps_by_source = {
            source.name: round(self._steps * weights / source.weight) for source in config.sources
        }
        self._logs: deque[StepMetrics] = deque()
        self._reported: set[str] = set()

    def add(self, metrics: StepMetrics) -> list[str]:
        """Add the metrics of a log.

        Args:
            metrics: The metrics. Those of steps that are repeated after a restart replace the older ones.

        Returns:
            A line for each cause that holds now and has not been returned before.
        """
        warmup = self._config.optim.warmup_steps
        while self._logs and self._logs[-1].step >= metrics.step:
            self._logs.pop()
        if metrics.step > warmup:
            self._logs.append(metrics)
        longest = max(self._steps_by_source.values())
        while self._logs and self._logs[0].step <= metrics.step - longest:
            self._logs.popleft()
        if metrics.step < warmup + self._steps or len(self._logs) < _FEWEST_LOGS:
            return []
        causes = {**self._losses(), **self._clipping(), **self._attention()}
        new = [line for cause, line in causes.items() if cause not in self._reported]
        self._reported |= set(causes)
        return new

    def _losses(self) -> dict[str, str]:
        """Return, by source, that its loss is at chance."""
        found = {}
        for source in self._config.sources:
            steps = self._steps_by_source[source.name]
            if self._logs[-1].step < self._config.optim.warmup_steps + steps:
                continue
            losses = [log.losses[source.name] for log in self._newest(steps) if source.name in log.losses]
            classes = source.num_classes if source.task == "softmax" else 2
            chance = math.log(classes)
            if len(losses) >= _FEWEST_LOGS and fmean(losses) > _AT_CHANCE * chance:
                found[f"loss of {source.name}"] = (
                    f"source '{source.name}' is not learned: {self._span(steps)} its loss is {fmean(losses):.3f}, that "
                    f"of guessing is ln {classes} = {chance:.3f}; lower optim.learning_rate, or check its labels with "
                    "jobs/inspect_data.py"
                )
        return found

    def _clipping(self) -> dict[str, str]:
        """Return that nearly all gradients are clipped, to a fraction of their norm."""
        limit = self._config.optim.clip_norm
        logs = self._newest(self._steps)
        shares = [log.signals["clipped"] for log in logs if "clipped" in log.signals]
        norms = [log.gradient_norm for log in logs if log.gradient_norm is not None]
        if len(shares) < _FEWEST_LOGS or fmean(shares) < _NEARLY_ALL or not norms:
            return {}
        if median(norms) < _FAR_ABOVE * limit:
            return {}
        return {
            "clipping": (
                f"{fmean(shares):.0%} of the gradients are clipped {self._span(self._steps)}: their median norm is "
                f"{median(norms):.3g}, optim.clip_norm is {limit:g}; raise it, or lower optim.learning_rate"
            )
        }

    def _attention(self) -> dict[str, str]:
        """Return, by cross-attend, that its attention has collapsed."""
        found = {}
        logs = self._newest(self._steps)
        latents = self._config.model.latents
        tokens_by_source = {
            source.name: sum(tokens(spec) for spec in self._config.inputs(source).values())
            for source in self._config.sources
        }
        for name in sorted({name for log in logs for name in log.signals}):
            kind, _, place = name.partition("/")
            shares = [log.signals[name] for log in logs if name in log.signals]
            if kind != "saturated" or len(shares) < _FEWEST_LOGS or fmean(shares) < _NEARLY_ALL:
                continue
            source, _, number = place.rpartition("/")
            if latents > _READ_ENOUGH * tokens_by_source[source]:
                continue
            found[name] = (
                f"attention has collapsed: in cross-attend {number}, {fmean(shares):.0%} of the latents give a single "
                f"token of source '{source}' nearly all of their attention {self._span(self._steps)}, so at most "
                f"{latents:,} of its {tokens_by_source[source]:,} tokens are read; lower optim.learning_rate"
            )
        return found

    def _newest(self, steps: int) -> list[StepMetrics]:
        """Return the logs of the newest steps."""
        return [log for log in self._logs if log.step > self._logs[-1].step - steps]

    def _span(self, steps: int) -> str:
        return f"in steps {self._logs[-1].step - steps + 1} to {self._logs[-1].step}"
