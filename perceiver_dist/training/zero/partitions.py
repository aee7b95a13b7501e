"""Partitions of a rank: its spans of the fp32 parameters, of the optimizer's moments, and of the moving average.

At ZeRO stage 0 every rank holds everything. Stages 1 and 2 concatenate the parameters of a group and give each rank an
equal span; stage 3 cuts every parameter into equal pieces. In each case a rank holds one span of the flattened elements
of a tensor.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from perceiver_dist.checkpoint.format import AVERAGE, PARTS, WEIGHT, Span, StoredCheckpoint
from perceiver_dist.training.zero.lamb import Piece
from perceiver_dist.training.zero.optimizer import base_optimizer, has_average, set_adam_step


@dataclass(frozen=True)
class TensorPartition:
    """A span of one tensor of the training state.

    Attributes:
        part: "weight", the name of a moment, or "average".
        name: Name of the parameter.
        start: First element of the span in the flattened tensor.
        values: (elements,) the span; a view of the training state, not a copy.
    """

    part: str
    name: str
    start: int
    values: Tensor


def whole_shapes(engine: Any) -> dict[str, tuple[int, ...]]:
    """Return the unpartitioned shape of every parameter by name.

    Args:
        engine: The DeepSpeed engine.
    """
    return {name: tuple(_whole_shape(parameter)) for name, parameter in engine.module.named_parameters()}


def owned_partitions(engine: Any) -> list[TensorPartition]:
    """Return the partitions that this rank saves. Together, the ranks save every element exactly once.

    Args:
        engine: The DeepSpeed engine.
    """
    held = [partition for part in _parts(engine) for partition in held_partitions(engine, part)]
    if engine.zero_optimization_stage() == 0:
        return list(_share(held, engine.global_rank, engine.dp_world_size))
    return held


def held_partitions(engine: Any, part: str) -> list[TensorPartition]:
    """Return the spans of one part that this rank holds: at stage 0 all of it.

    Args:
        engine: The DeepSpeed engine.
        part: "weight", the name of a moment, or "average".
    """
    return [
        partition
        for name, parameter in engine.module.named_parameters()
        if (partition := _held(engine, part, name, parameter)) is not None
    ]


def held_spans(engine: Any, part: str) -> dict[str, Tensor]:
    """Return this rank's spans of all parameters, or of one of their moments.

    Args:
        engine: The DeepSpeed engine.
        part: "weight", or the name of a moment.

    Returns:
        (elements,) by name of the parameter, without padding; views of the training state. At stage 0 every rank has
        all elements, at the other stages every element is on one rank.
    """
    return {partition.name: partition.values for partition in held_partitions(engine, part)}


def pieces_by_parameter(engine: Any) -> dict[Tensor, list[Piece]]:
    """Return the positions of this rank's spans within the parameters of the optimizer.

    Args:
        engine: The DeepSpeed engine, whose optimizer has its state.

    Returns:
        The pieces by parameter of the optimizer, of any shape. Tensors are numbered in the model's order.
    """
    pieces: dict[Tensor, list[Piece]] = {parameter: [] for parameter in base_optimizer(engine).state}
    for number, (name, parameter) in enumerate(engine.module.named_parameters()):
        held = _held(engine, WEIGHT, name, parameter)
        if held is None:
            continue
        for whole, of_whole in pieces.items():
            # Spans are views of the optimizer's parameters, so addresses tell where they lie.
            start = (held.values.data_ptr() - whole.data_ptr()) // whole.element_size()
            if 0 <= start < whole.numel():
                of_whole.append(Piece(number, start, start + held.values.numel()))
    return pieces


def load_optimizer(engine: Any, checkpoint: StoredCheckpoint) -> None:
    """Load a checkpoint's optimizer state into a new engine whose model has the checkpoint's weights.

    The moving average stays a copy of the weights, if the checkpoint has none.

    Args:
        engine: The DeepSpeed engine, of any stage and world size.
        checkpoint: The checkpoint.
    """
    set_adam_step(engine, checkpoint.progress.optimizer_steps)
    partitions = [
        (parameter, partition)
        for part in _parts(engine)
        for name, parameter in engine.module.named_parameters()
        if part != WEIGHT
        and part in checkpoint.parts
        and (partition := _held(engine, part, name, parameter)) is not None
    ]
    stored = checkpoint.read({(of.part, of.name): Span(of.start, of.values.numel()) for _, of in partitions})
    for parameter, partition in partitions:
        _put(engine, parameter, partition, stored[partition.part, partition.name].to(engine.device))


def _parts(engine: Any) -> tuple[str, ...]:
    """Return the parts that the engine has of every parameter, in the order of files."""
    return (*PARTS, AVERAGE) if has_average(engine) else PARTS


def _held(engine: Any, part: str, name: str, parameter: Any) -> TensorPartition | None:
    """Return this rank's span of a parameter or one of its moments; None if it has none."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        whole = parameter.detach() if part == WEIGHT else engine.optimizer.state[parameter][part]
        return TensorPartition(part, name, 0, whole.view(-1))
    if stage == 3:
        return _held_at_stage_3(engine, part, name, parameter)
    # DeepSpeed's link from a parameter to its fp32 partition; None if all of it is on other ranks.
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    values = mapping.get_hp_fragment(None if part == WEIGHT else part)
    return TensorPartition(part, name, mapping.lp_fragment_address.start, values.detach())


def _held_at_stage_3(engine: Any, part: str, name: str, parameter: Any) -> TensorPartition | None:
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    # Every rank has an equal piece of the flattened tensor; the last pieces are padded, or consist of padding.
    piece = parameter.ds_tensor.numel()
    start = piece * engine.global_rank
    unpadded = min(piece, parameter.ds_numel - start)
    if unpadded <= 0:
        return None
    is_weight = part == WEIGHT
    values: Tensor = (
        safe_get_local_fp32_param(parameter) if is_weight else safe_get_local_optimizer_state(parameter, part)
    )
    return TensorPartition(part, name, start, values.detach()[:unpadded])


def _put(engine: Any, parameter: Any, partition: TensorPartition, values: Tensor) -> None:
    if engine.zero_optimization_stage() < 3:
        partition.values.copy_(values)
        return
    from deepspeed.utils import safe_set_local_optimizer_state

    # DeepSpeed takes a partition with its padding only.
    padded = torch.zeros(parameter.ds_tensor.numel(), dtype=values.dtype, device=values.device)
    padded[: values.numel()] = values
    safe_set_local_optimizer_state(parameter, padded, partition.part)


def _share(partitions: list[TensorPartition], rank: int, world_size: int) -> Iterator[TensorPartition]:
    """Yield one rank's equal share of the concatenated partitions. At stage 0 all ranks hold the same."""
    total = sum(partition.values.numel() for partition in partitions)
    first, stop = total * rank // world_size, total * (rank + 1) // world_size
    position = 0
    for partition in partitions:
        size = partition.values.numel()
        begin, end = max(first - position, 0), min(stop - position, size)
        if begin < end:
            yield replace(partition, start=partition.start + begin, values=partition.values[begin:end])
        position += size


def _whole_shape(parameter: nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)
