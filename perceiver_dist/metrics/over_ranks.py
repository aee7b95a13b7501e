"""Tensors of all ranks: sums, and rows of which each rank has a different number, or none."""

import torch
from torch import Tensor, distributed


def summed(tensor: Tensor) -> Tensor:
    """Return the sum over the ranks, leaving the tensor unchanged. Every rank must call it.

    Args:
        tensor: Of the same shape on every rank.
    """
    if not distributed.is_initialized():
        return tensor
    total = tensor.clone()
    distributed.all_reduce(total)
    return total


def gathered(rows: Tensor) -> Tensor:
    """Return the rows of all ranks, in the order of the ranks. Every rank must call it.

    torchmetrics has such a function, but importing it takes a second, which runs without multilabel sources would spend
    for this alone.

    Args:
        rows: (rows of this rank, ...); only the first axis may differ between ranks.
    """
    if not distributed.is_initialized():
        return rows
    ranks = distributed.get_world_size()
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(ranks)]
    distributed.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    lengths = [int(size) for size in sizes]
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in lengths]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
