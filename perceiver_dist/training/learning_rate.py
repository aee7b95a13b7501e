"""The learning rate as a function of the step alone, so that nothing of it needs to be saved."""

from math import cos, pi

from perceiver_dist.config import OptimConfig


def learning_rate(step: int, steps: int, optim: OptimConfig) -> float:
    """Return the learning rate of an optimizer step: linear warm-up, then half a cosine.

    Args:
        step: The step, from 0.
        steps: Steps of the whole run; the last step has nearly the final rate.
        optim: Highest rate, length of the warm-up, and final fraction.
    """
    if step < optim.warmup_steps:
        return optim.learning_rate * (step + 1) / optim.warmup_steps
    progress = (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
    fraction = optim.final_fraction + (1 - optim.final_fraction) * (1 + cos(pi * progress)) / 2
    return optim.learning_rate * fraction
