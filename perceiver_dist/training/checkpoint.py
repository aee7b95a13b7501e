"""Checkpoints that know nothing of how training was partitioned: whole tensors by parameter name, in fp32.

A Perceiver is small for what it computes (the paper's has 45M parameters, half a gigabyte with Adam's state), so
the ranks' pieces are put together when saving, and each rank takes its piece when loading. A checkpoint therefore
loads at any world size and any ZeRO stage, and its weights can be used without DeepSpeed:

    weights.safetensors     parameters by name
    optimizer.safetensors   "<parameter>/exp_avg" and "<parameter>/exp_avg_sq" of AdamW
    progress.json           steps taken, samples seen, digests of the two files

Restoring is exact: fp32 values are copied back bit for bit, the learning rate and the order of samples follow
from the number of steps, and nothing in the forward pass is random.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from perceiver_dist.errors import UserError
from perceiver_dist.training.engine import MOMENTS, set_adam_step

WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
PROGRESS = "progress.json"


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        steps: Optimizer steps taken.
        samples_seen: Samples learned from, all sources together.
        world_size: Number of ranks that wrote the checkpoint; for information.
        zero_stage: ZeRO stage that wrote it; for information.
    """

    steps: int
    samples_seen: int
    world_size: int
    zero_stage: int


def save_checkpoint(engine: Any, progress: Progress, folder: Path | None) -> None:
    """Gather the training state and write it. Every rank must call this after the same optimizer step.

    Args:
        engine: The DeepSpeed engine.
        progress: How far the run has come.
        folder: Where to write, on rank 0; None on the other ranks, which only take part in gathering.
    """
    weights: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        whole = {moment: _whole_tensor(engine, parameter, moment) for moment in (None, *MOMENTS)}
        if folder is not None:
            weights[name] = whole.pop(None).cpu().contiguous()
            moments.update(
                {f"{name}/{moment}": tensor.cpu().contiguous() for moment, tensor in whole.items()}
            )
    if folder is None:
        return
    save_file(weights, folder / WEIGHTS)
    save_file(moments, folder / OPTIMIZER)
    digests = {name: _digest(folder / name) for name in (WEIGHTS, OPTIMIZER)}
    (folder / PROGRESS).write_text(json.dumps({**asdict(progress), "sha256": digests}, indent=1))


def load_progress(folder: Path) -> Progress:
    """Read how far a checkpoint's run had come, after checking that its files are whole.

    Args:
        folder: The checkpoint.

    Returns:
        Its progress.

    Raises:
        UserError: A file is missing or is not the one that was written.
    """
    try:
        content = json.loads((folder / PROGRESS).read_text())
        for name, digest in content.pop("sha256").items():
            if _digest(folder / name) != digest:
                raise UserError(f"checkpoint {folder}: {name} is damaged; start another storage.run_name")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"checkpoint {folder}: cannot be read ({error}); start another storage.run_name"
        ) from error
    return Progress(**content)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Put a checkpoint's weights into a model, before an engine is built around it.

    Args:
        model: A Perceiver of the same configuration.
        folder: The checkpoint.

    Raises:
        UserError: The checkpoint has other parameters than the model.
    """
    weights = load_file(folder / WEIGHTS)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        name, shape = sorted(set(found.items()) ^ set(expected.items()))[0]
        raise UserError(
            f"checkpoint {folder}: does not fit the model: '{name}' {shape} is in one of them only; "
            "use the model options it was trained with, or another storage.run_name"
        )
    model.load_state_dict(weights)


def load_optimizer(engine: Any, folder: Path, steps: int) -> None:
    """Put a checkpoint's AdamW state into a new engine whose model has the checkpoint's weights.

    Args:
        engine: The DeepSpeed engine, of any stage and world size.
        folder: The checkpoint.
        steps: Optimizer steps taken, for AdamW's bias correction.
    """
    moments = load_file(folder / OPTIMIZER)
    set_adam_step(engine, steps)
    for name, parameter in engine.module.named_parameters():
        for moment in MOMENTS:
            _set_moment(engine, parameter, moment, moments[f"{name}/{moment}"].to(engine.device))


def _whole_tensor(engine: Any, parameter: nn.Parameter, moment: str | None) -> Tensor:
    """Return a parameter, or one of its moments, put together from all ranks' pieces."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if engine.zero_optimization_stage() == 0:
        return parameter.detach() if moment is None else engine.optimizer.state[parameter][moment]
    if moment is None:
        return safe_get_full_fp32_param(parameter).view(_whole_shape(parameter))
    return safe_get_full_optimizer_state(parameter, moment).view(_whole_shape(parameter))


def _whole_shape(parameter: nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def _set_moment(engine: Any, parameter: Any, moment: str, value: Tensor) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    stage = engine.zero_optimization_stage()
    if stage == 0:
        engine.optimizer.state[parameter][moment].copy_(value)
    elif stage == 3:
        # Stage 3 gives every rank an equal piece of the flattened tensor, the last one padded with zeros;
        # DeepSpeed's own setter for whole tensors does not pad.
        piece = parameter.ds_tensor.numel()
        padded = torch.zeros(piece * engine.dp_world_size, dtype=value.dtype, device=value.device)
        padded[: value.numel()] = value.flatten()
        start = piece * engine.global_rank
        safe_set_local_optimizer_state(parameter, padded[start : start + piece], moment)
    else:
        safe_set_full_optimizer_state(parameter, value, moment)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
