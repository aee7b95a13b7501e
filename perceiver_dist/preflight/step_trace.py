"""Memory of a training step, from a trace of the model's own code on tensors without data.

The idea: forward and backward run on fake tensors, which have a shape, a dtype and a device, but no data and no
kernels. A dispatch mode notes every storage that is allocated and freed. So the result follows the code: what autocast
casts, what autograd saves, what checkpointing recomputes, what a kernel writes. No layer is described a second time
here. The ImageNet model takes about a second, whatever the batch and the device. A cost model by layer, which was here
before, was off by half in bf16.

Four places where a trace needs help:

1. autograd's engine refuses tensors of a device that the machine lacks. `walk_backward` walks the graph instead: it
   calls a node once all of its gradients have arrived, and of several such nodes the one created last, like the engine.
2. On CUDA, torch chooses a kernel for `scaled_dot_product_attention` by asking the device. `_FusedAttention` chooses by
   the documented rules: flash attention for bf16 up to 256 channels, memory-efficient attention otherwise.
3. Triton kernels write into arrays that were allocated before, so their launches are skipped. Loops over tiles allocate
   the same in every iteration but the first, while the arrays of the one before live on, so only two are computed.
4. `torch.autocast` turns itself off where there is no CUDA.
"""

import heapq
import importlib.util
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from itertools import count
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import GraphExecGroup

from perceiver_dist.model import factored, self_attention, separable
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.perceiver import Perceiver
from perceiver_dist.model.precision import autocast

_BLOCK = 512
"""Bytes to which torch's CUDA allocator rounds every allocation."""
_FLASH_CHANNELS = 256
"""Channels of a head up to which flash attention works; it pads them to a multiple of 8."""


class AllocationTrace(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """Dispatch mode that notes the bytes in use whenever an operation has allocated, on real and on fake tensors.

    Storages that exist before the mode is entered do not count.

    Attributes:
        in_use: Bytes in use now, of storages allocated in this mode.
        history: Bytes in use after each allocation.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.in_use = 0
        self.history: list[int] = []
        self._known: dict[int, weakref.finalize[Any, Any]] = {}

    @property
    def peak(self) -> int:
        """The largest number of bytes that were in use at once."""
        return max(self.history, default=0)

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Exclude tensors from the count.

        Args:
            tensors: Tensors of any shape that were allocated outside this mode.
        """
        for tensor in tensors:
            self._note(tensor.untyped_storage(), 0)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note what it allocated."""
        result = operation(*args, **(kwargs or {}))
        allocated = False
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                storage = leaf.untyped_storage()
                if storage._cdata not in self._known:
                    self._note(storage, -(-storage.nbytes() // _BLOCK) * _BLOCK)
                    allocated = True
        if allocated:
            self.history.append(self.in_use)
        return result

    def _note(self, storage: torch.UntypedStorage, size: int) -> None:
        self.in_use += size
        # torch keeps a storage's Python object as long as the storage itself lives.
        self._known[storage._cdata] = weakref.finalize(storage, self._forget, storage._cdata, size)

    def _forget(self, address: int, size: int) -> None:
        self.in_use -= size
        del self._known[address]


@lru_cache(maxsize=64)
def trace_step(
    config: ModelConfig,
    heads: tuple[tuple[str, int], ...],
    modalities: tuple[str, ...],
    micro_batch: int,
    precision: Literal["fp32", "bf16"],
    device: str,
) -> tuple[int, ...]:
    """Return the bytes in use after each allocation of forward and backward, without parameters and their gradients.

    The arrays of the micro-batch are included. Gradients that are still being summed up are as well, since each weight
    is used more than once; the sums themselves are not.

    Args:
        config: The model's options.
        heads: Name and number of classes of each source.
        modalities: Modalities of the step's source.
        micro_batch: Samples.
        precision: fp32, or bf16 by autocast.
        device: Type of the device, cpu or cuda; the machine need not have one.

    Returns:
        Bytes by allocation. Their number and order do not depend on the micro-batch.

    Raises:
        UserError: The model cannot be built.
    """
    # Here, since the import loads torch's compiler, which takes a second.
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device("meta"):
        model = Perceiver(config, dict(heads))
    trace = AllocationTrace()
    with FakeTensorMode(), _traceable(device):
        apply: Callable[..., Perceiver] = model._apply
        apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))
        parameters = list(model.parameters())
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        trace.ignore([*parameters, *model.buffers(), *(p.grad for p in parameters if p.grad is not None)])
        with trace:
            arrays = {
                name: torch.empty(
                    (micro_batch, *spec.array_shape), dtype=getattr(torch, spec.array_dtype), device=device
                )
                for name, spec in config.modalities.items()
                if name in modalities
            }

            def loss() -> Tensor:
                with autocast(torch.device(device), precision):
                    logits = model(arrays, {}, heads[0][0])
                return logits.float().logsumexp(1).sum()

            walk_backward(loss)
    return tuple(trace.history)


def walk_backward(compute: Callable[[], Tensor]) -> None:
    """Add the gradients of a loss to its parameters, as `loss.backward()` does, whatever device the tensors claim.

    The graph is freed on the way: a node, and what it saved, lives as long as something refers to it.

    Args:
        compute: Returns the loss, a scalar. A function, since the loss itself would keep the whole graph.
    """
    loss = compute()
    order = count()
    # A number for each node instead of the node, so that nothing here keeps a node alive.
    missing = _count_incoming(loss.grad_fn)
    arrived: dict[int, tuple[Any, list[Tensor | None]]] = {}
    # Nodes with all of their gradients, after their priority and the order of arrival.
    ready: list[tuple[int, int, Any, list[Tensor | None]]] = [(0, 0, loss.grad_fn, [torch.ones_like(loss)])]
    del loss
    # Under one `GraphExecGroup` a checkpointed layer is recomputed once, as under autograd's engine.
    with torch.no_grad(), GraphExecGroup():
        while ready:
            *_, node, gradients = heapq.heappop(ready)
            following, results = node.next_functions, _call(node, gradients)
            del node, gradients
            for (target, place), gradient in zip(following, results, strict=False):
                if target is None:
                    continue
                number = _number(target)
                slots = arrived.setdefault(number, (target, [None] * len(target._input_metadata)))[1]
                _add(slots, place, gradient, target._input_metadata[place])
                missing[number] -= 1
                if not missing[number]:
                    # Parameters first, as in the engine, then the node that was created last.
                    priority = -number if number >= 0 else -(2**63)
                    heapq.heappush(ready, (priority, next(order), *arrived.pop(number)))
            # Or they would keep gradients and nodes alive during the next call.
            following = results = target = gradient = slots = None  # type: ignore[assignment]


def _count_incoming(root: Any) -> dict[int, int]:
    """Return how many gradients each node of a graph waits for, by the node's number."""
    missing: dict[int, int] = {}
    pending = [root]
    while pending:
        for target, _ in pending.pop().next_functions:
            if target is not None:
                number = _number(target)
                if number not in missing:
                    pending.append(target)
                missing[number] = missing.get(number, 0) + 1
    return missing


def _number(node: Any) -> int:
    """Return a number that identifies a node: that of its creation, or a negative one for a parameter's."""
    return -id(node.variable) if hasattr(node, "variable") else node._sequence_nr()


def _call(node: Any, gradients: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    results: Any
    if hasattr(node, "apply"):
        # A function in Python, whose missing gradients the engine replaces by zeros.
        filled = [
            torch.zeros(expected.shape, dtype=expected.dtype, device=expected.device)
            if given is None
            else given
            for given, expected in zip(gradients, node._input_metadata, strict=True)
        ]
        results = node.apply(*filled)
        results = results if isinstance(results, tuple) else (results,)
        # It returns one for every argument, the engine keeps those of tensors. Others come last here, or else first.
        while len(results) > len(node.next_functions):
            results = results[:-1] if results[-1] is None else results[1:]
    else:
        results = node(*gradients)
    return results if isinstance(results, tuple) else (results,)


def _add(slots: list[Tensor | None], place: int, gradient: Tensor | None, expected: Any) -> None:
    """Add a gradient to what has arrived, in the shape and dtype of the forward pass, as the engine does."""
    if gradient is None:
        return
    if gradient.shape != expected.shape:
        gradient = gradient.sum_to_size(expected.shape)
    if gradient.dtype != expected.dtype:
        gradient = gradient.to(expected.dtype)
    before = slots[place]
    slots[place] = gradient if before is None else before + gradient


@contextmanager
def _traceable(device: str) -> Iterator[None]:
    """Replace, for the duration of a trace, what a trace cannot run; see the module."""
    with ExitStack() as stack:
        stack.enter_context(_FusedAttention())
        for module in (factored, separable):
            element = (slice(0, 1), slice(0, 1))
            stack.enter_context(_replaced(module, "_tiles", _first_two(module._tiles, element)))
        chunks = _first_two(self_attention._chunks, slice(0, 2))
        stack.enter_context(_replaced(self_attention, "_chunks", chunks))
        if device == "cuda":
            stack.enter_context(
                _replaced(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
            )
            stack.enter_context(_replaced(torch.cuda, "is_bf16_supported", lambda: True))
            if importlib.util.find_spec("triton") is not None:
                from triton.runtime.jit import KernelInterface

                stack.enter_context(_replaced(KernelInterface, "__getitem__", _skip_launch))
                # It asks the device for its compute capability; all GPUs of today have one that suffices.
                stack.enter_context(
                    _replaced(separable, "_has_kernels", lambda query: query.dtype == torch.float32)
                )
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _first_two(tiles: Callable[..., Iterator[Any]], element: Any) -> Callable[..., Iterator[Any]]:
    """Return a function that yields a loop's first two tiles, or the first and one of a single element."""

    def first_two(*arguments: Any) -> Iterator[Any]:
        found = tiles(*arguments)
        yield next(found)
        # Always two, so that the number of allocations does not depend on the micro-batch.
        yield next(found, element)

    return first_two


def _skip_launch(_kernel: Any, _programs: Any) -> Callable[..., None]:
    return lambda *_arguments, **_options: None


class _FusedAttention(TorchFunctionMode):
    """Function mode that resolves `scaled_dot_product_attention` to the kernel that torch uses on the device."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function, or the kernel chosen for attention."""
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        return _fused_attention(*args, **(kwargs or {}))


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    kind, operations = query.device.type, torch.ops.aten
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    with torch.autocast(kind, enabled=False):
        if kind == "cpu":
            return operations._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, attn_mask=attn_mask, scale=scale
            )[0]
        channels = query.shape[-1]
        if query.itemsize == torch.bfloat16.itemsize and channels <= _FLASH_CHANNELS and attn_mask is None:
            padded = [
                F.pad(array, (0, -channels % 8)) if channels % 8 else array for array in (query, key, value)
            ]
            return operations._scaled_dot_product_flash_attention(*padded, scale=scale)[0][..., :channels]
        # Rows of 16 bytes.
        if channels % (16 // query.itemsize) == 0:
            bias = (
                None
                if attn_mask is None
                else attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[2])
            )
            return operations._scaled_dot_product_efficient_attention(
                query, key, value, bias, torch.is_grad_enabled(), scale=scale
            )[0]
        return operations._scaled_dot_product_attention_math(
            query, key, value, attn_mask=attn_mask, scale=scale
        )[0]
