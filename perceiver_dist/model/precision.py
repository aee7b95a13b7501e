"""Precision of a forward pass, the same in training, evaluation and prediction."""

import torch


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context for a forward pass: bfloat16 matrix products for bf16, disabled for fp32.

    Args:
        device: Device of the forward pass.
        precision: fp32 or bf16.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
