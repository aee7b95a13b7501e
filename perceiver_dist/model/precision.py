"""Precision of a forward pass, the same in training, evaluation and prediction."""

import torch
from torch import Tensor


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context for a forward pass: bfloat16 matrix products for bf16, disabled for fp32.

    Args:
        device: Device of the forward pass.
        precision: fp32 or bf16.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of matrix products and of the residual stream: autocast's, or the tensor's own without autocast.

    The stream of a bf16 run is bf16 as well. It is rounded once per layer, as in other Transformers trained in bf16,
    and halves the memory traffic of everything between the matrix products. Parameters, their gradients and the
    statistics of every LayerNorm stay in fp32.

    Args:
        tensor: One of the model's parameters or activations, of any shape.
    """
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype
