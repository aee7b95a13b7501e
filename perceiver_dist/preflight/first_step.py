"""First step of a new model: loss, gradients and attention before anything is learned, on random samples.

A new model should know nothing, and say so: its loss is then that of guessing, ln K with K classes. A larger loss is
certainty without a reason, which the first steps have to unlearn.
"""

import math
from typing import Any

import torch
from torch import Tensor

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.metrics.losses import loss_per_sample
from perceiver_dist.modalities import ModalityInput, PointCloudInput
from perceiver_dist.model.observation.forward_watch import ForwardWatch
from perceiver_dist.model.perceiver import Perceiver
from pipelines.shards.source import SourceConfig

_LABELS = 64
"""Random labels over which a sample's loss is averaged: the loss of one label varies by the spread of the logits."""


def first_step(config: RunConfig, samples: int = 2) -> dict[str, dict[str, Any]]:
    """Compute forward and backward pass of the new model that a run would start with, in fp32 on the CPU.

    Args:
        config: The run's configuration.
        samples: Random samples of each source.

    Returns:
        A mapping for JSON, by source:

        - loss: mean over random labels, in nats; chance: the loss of guessing.
        - logit_std: standard deviation of the logits.
        - gradient_norms: L2 norm of the gradient of each part of the model, for one label a sample.
        - entropy, saturated: of each cross-attend, see `ForwardWatch`.
        - latent_cosine: mean cosine between two latents of a sample after the last block.
        - latent_rms: root mean square of the latents after the last block.

    Raises:
        UserError: The model cannot be built.
    """
    torch.manual_seed(config.train.seed)
    model = Perceiver(config.model, config.heads)
    return {source.name: _of_source(model, config, source, samples) for source in config.sources}


def _of_source(model: Perceiver, config: RunConfig, source: SourceConfig, samples: int) -> dict[str, Any]:
    arrays = {name: _random_array(spec, samples) for name, spec in config.inputs(source).items()}
    model.zero_grad()
    model.observer = watch = ForwardWatch(config.model.cross_attends)
    logits, latents = model.logits_and_latents(arrays, {}, source.name)
    torch.autograd.backward(loss_per_sample(logits, _labels(source, samples), source.task).mean())
    attention, cosine = watch.statistics()
    repeated = logits.detach().repeat(_LABELS, 1)
    return {
        "loss": loss_per_sample(repeated, _labels(source, len(repeated)), source.task).mean().item(),
        "chance": math.log(source.num_classes if source.task == "softmax" else 2),
        "logit_std": logits.std().item(),
        "gradient_norms": _gradient_norms(model),
        "entropy": attention[:, 0].tolist(),
        "saturated": attention[:, 1].tolist(),
        "latent_cosine": cosine.item(),
        "latent_rms": latents.square().mean().sqrt().item(),
    }


def _random_array(spec: ModalityInput, samples: int) -> Tensor:
    """Return random samples (B, *array_shape): each has a level of its own, and noise around it, as media have."""
    if isinstance(spec, PointCloudInput):
        return 2 * torch.rand(samples, *spec.array_shape) - 1
    dtype = getattr(torch, spec.array_dtype)
    limits = torch.iinfo(dtype)
    middle, reach = (limits.max + limits.min) / 2, (limits.max - limits.min) / 2
    level = torch.rand(samples, *(1 for _ in spec.array_shape)) - 0.5
    return (middle + reach * (level + torch.rand(samples, *spec.array_shape) - 0.5)).to(dtype)


def _labels(source: SourceConfig, samples: int) -> Tensor:
    """Return (B,) random classes, or (B, classes) with one class each."""
    classes = torch.randint(source.num_classes, (samples,))
    return classes if source.task == "softmax" else torch.nn.functional.one_hot(classes, source.num_classes)


def _gradient_norms(model: Perceiver) -> dict[str, float]:
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        part = name.partition(".")[0]
        gradient = 0.0 if parameter.grad is None else parameter.grad.square().sum().item()
        squares[part] = squares.get(part, 0.0) + gradient
    return {part: math.sqrt(square) for part, square in squares.items()}
