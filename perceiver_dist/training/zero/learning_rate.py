"""Learning rate schedule: a function of the step alone, so that a checkpoint need not store it."""

from math import cos, pi

from perceiver_dist.config.optim_config import OptimConfig


def learning_rate(step: int, steps: int, optim: OptimConfig) -> float:
    """Return the learning rate of an optimizer step: linear warm-up, then `optim.schedule`.

    Args:
        step: The step, from 0.
        steps: Steps of the whole run. With the cosine schedule the last step nearly has the final rate.
        optim: Peak rate of the run's global batch (`RunConfig.scaled_optim`), length of the warm-up, schedule and its
            options.
    """
    if step < optim.warmup_steps:
        return optim.learning_rate * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.learning_rate
    if optim.schedule == "steps":
        decays = sum(step >= fraction * steps for fraction in optim.decay_at)
        return float(optim.learning_rate * optim.decay_factor**decays)
    begin = max(float(optim.warmup_steps), optim.flat_fraction * steps)
    progress = max(0.0, step - begin) / max(1, steps - begin)
    fraction = optim.final_fraction + (1 - optim.final_fraction) * (1 + cos(pi * progress)) / 2
    return optim.learning_rate * fraction
