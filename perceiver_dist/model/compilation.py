"""Compilation of the latents' layers by torch.compile.

Most of a step's launches belong to the latents: norms, casts, residuals and biases around matrix products. Inductor
fuses them. What is compiled is a block of layers and not the model ("regional compilation"): Dynamo takes parameters as
inputs, so all blocks, and all repetitions of a block, share one graph. It takes little longer to compile than a layer,
since its layers have the same kernels, and costs less on the host: a graph of six layers is entered once, not six times
(docs/experiments.md). Attention to the tokens is not part of a graph: it has kernels of its own, and its shapes vary
with the modalities of a step. With activation checkpointing each layer is a graph, which is recomputed as a whole.

A graph would cast its fp32 weights to bf16 whenever it runs, and the paper's model runs one block 8 times. So a block
gets weights that were cast once per forward pass, as autocast's own cache does for plain layers.

One graph is compiled for each shape, dtype and mode (training or not). It works with ZeRO stages 0 to 2, whose hooks
are on the gradients of parameters. Stage 3 gathers parameters in hooks of the modules inside a graph, so there nothing
is compiled.

A graph is a function of the code, the shapes and the versions of torch and Triton. Inductor would also time variants of
a kernel on the device and take the fastest, and variants differ in the order of their sums. Its option `deterministic`
turns that off, so that a restarted run computes the same bits.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from perceiver_dist.model.attention import CrossAttend
from perceiver_dist.model.layers import LatentBlock, SelfAttend, updated
from perceiver_dist.model.precision import compute_dtype


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Compile the latents' layers of a model in place; each graph is compiled when it is first needed.

    Args:
        model: The Perceiver. It cannot be pickled afterwards.
        backend: Backend of torch.compile; others than inductor serve to count what it is given.
    """
    options: dict[str, Any] | None = {"deterministic": True} if backend == "inductor" else None
    compiled: Callable[[Any], Any] = partial(torch.compile, dynamic=False, backend=backend, options=options)
    forward_pass, run = _ForwardPass(model), compiled(_run)
    for module in list(model.modules()):
        if isinstance(module, CrossAttend):
            replaced = {name: compiled(getattr(module, name)) for name in ("folded_query", "update")}
        elif isinstance(module, LatentBlock) and not module.checkpointing:
            replaced = {"forward": partial(forward_pass.run, run, module)}
        elif isinstance(module, LatentBlock):
            for layer in module:
                layer.forward = compiled(layer.forward)
            continue
        else:
            continue
        for name, method in replaced.items():
            setattr(module, name, method)


class _ForwardPass:
    """Weights of blocks in autocast's dtype, each cast once in a forward pass of the model.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights: dict[LatentBlock, list[dict[str, Tensor]]] | None = None
        model.register_forward_pre_hook(self._begin)
        model.register_forward_hook(self._end, always_call=True)

    def run(
        self, run: Callable[..., Tensor], block: LatentBlock, latents: Tensor, depth: Tensor | None = None
    ) -> Tensor:
        """Run the graph of a block.

        Args:
            run: `_run`, compiled.
            block: The block.
            latents: (B, N, D).
            depth: (layers, B), as for the block.

        Returns:
            (B, N, D).
        """
        # Outside of a forward pass of the whole model nothing says when weights change.
        known = {} if self._weights is None else self._weights
        if block not in known:
            known[block] = [_cast_weights(layer) for layer in block]
        return run(list(block), known[block], latents, depth)

    def _begin(self, *_: Any) -> None:
        self._weights = {}

    def _end(self, *_: Any) -> None:
        self._weights = None


def _cast_weights(layer: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a layer's linear parts by name, in autocast's dtype; none without autocast."""
    return {
        f"{name}.{kind}": parameter.to(dtype)
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
        for kind, parameter in module.named_parameters()
        if (dtype := compute_dtype(parameter)) != parameter.dtype
    }


def _run(
    layers: Sequence[SelfAttend],
    weights: Sequence[dict[str, Tensor]],
    latents: Tensor,
    depth: Tensor | None,
) -> Tensor:
    """Call layers one after the other with other weights in place of their own: (B, N, D) -> (B, N, D)."""
    for number, (layer, of_layer) in enumerate(zip(layers, weights, strict=True)):
        after: Tensor = functional_call(layer, of_layer, (latents,))
        latents = after if depth is None else updated(latents, after, depth[number])
    return latents
