"""Random parts of the model that a step leaves out: latents, and self-attention layers (stochastic depth).

Latent dropout takes a random subset of the latents for a whole unit, always of the same size, so that no mask is needed
and a step costs less. Stochastic depth (Huang et al. 2016, arXiv 1603.09382) leaves the update of a layer out of a
sample with a probability that grows linearly with the layer's place, up to the given one at the last layer; what is not
left out is scaled so that the mean update stays the same. All layers are computed even so: ZeRO-3 expects every step to
call the modules of the first one.

Both are drawn from the run's seed, the source and the unit's number, so that every rank and every resumed run draws the
same, whatever the number of workers.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.data.batches import Batch
from perceiver_dist.data.device_copies import copies_to
from pipelines.permutation import hash64


class Kept(NamedTuple):
    """What takes part in the forward pass of a unit, as arguments of the model.

    Attributes:
        latents: (n,) int64, numbers of the latents, ascending; None for all.
        depth: (layers, B) fp32, factor of each layer's update of each sample; None for 1.
    """

    latents: Tensor | None
    depth: Tensor | None


def draw_kept(batch: Batch, source: str, config: RunConfig, device: torch.device) -> Kept:
    """Draw what takes part in the forward pass of a unit, according to the options of `optim`.

    Args:
        batch: The unit.
        source: Name of the unit's source.
        config: The run's configuration.
        device: Device of the model.
    """
    optim, model, arrays = config.optim, config.model, {}
    if optim.latent_dropout:
        random = np.random.default_rng(hash64(config.train.seed, source, "latents", batch.unit))
        count = max(1, round((1 - optim.latent_dropout) * model.latents))
        arrays["latents"] = np.sort(random.permutation(model.latents)[:count])
    if optim.stochastic_depth:
        random = np.random.default_rng(hash64(config.train.seed, source, "depth", batch.unit))
        dropped = optim.stochastic_depth * np.arange(1, model.self_attends + 1)[:, None] / model.self_attends
        kept = random.random((model.self_attends, len(batch.keys))) >= dropped
        arrays["depth"] = (kept / (1 - dropped)).astype(np.float32)
    if not arrays:
        return Kept(None, None)
    sent = copies_to(device).send(arrays)
    return Kept(sent.get("latents"), sent.get("depth"))
