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


def multiplies_in_bf16(tensor: Tensor) -> bool:
    """Return whether matrix products with a tensor are in bfloat16: its dtype, or that of autocast where it lies.

    Args:
        tensor: A floating-point tensor of any shape.
    """
    kind = tensor.device.type
    autocast_to_bf16 = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
    return tensor.dtype == torch.bfloat16 or autocast_to_bf16
