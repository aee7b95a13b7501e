"""LAMB under every ZeRO stage against an implementation on whole tensors, and its resume from a checkpoint."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from perceiver_dist.checkpoint.format import read_weights
from perceiver_dist.model.perceiver import Perceiver
from perceiver_dist.training.zero.lamb import Lamb
from perceiver_dist.training.zero.learning_rate import learning_rate
from perceiver_dist.training.zero.optimizer import parameter_groups

STAGES = (0, 1, 2, 3)
WORLDS = (1, 2)
OPTIM = replace(ranks.CONFIG.optim, warmup_steps=5)


@pytest.fixture(scope="module")
def whole_tensors() -> tuple[list[float], dict[str, Tensor]]:
    """Losses of all steps and weights at `SAVED_AT`, by algorithm 2 of the paper, tensor by tensor."""
    torch.manual_seed(0)
    model = Perceiver(ranks.CONFIG.model, ranks.CONFIG.heads)
    decayed = {id(tensor) for tensor in parameter_groups(model, OPTIM)[0]["params"]}
    first, second = ([torch.zeros_like(tensor) for tensor in model.parameters()] for _ in range(2))
    losses, saved = [], {}
    for step in range(ranks.STEPS):
        model.zero_grad()
        lanes = [ranks.lane_loss(model, step, lane) / ranks.LANES for lane in range(ranks.LANES)]
        loss = torch.stack(lanes).sum()
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it without types
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip_norm)
        rate = learning_rate(step, ranks.STEPS, OPTIM)
        for tensor, m, v in zip(model.parameters(), first, second, strict=True):
            w, g = tensor.data, tensor.grad
            assert g is not None
            m.copy_(OPTIM.beta1 * m + (1 - OPTIM.beta1) * g)
            v.copy_(OPTIM.beta2 * v + (1 - OPTIM.beta2) * g * g)
            m_hat, v_hat = m / (1 - OPTIM.beta1 ** (step + 1)), v / (1 - OPTIM.beta2 ** (step + 1))
            u = m_hat / (v_hat.sqrt() + 1e-6) + (OPTIM.weight_decay if id(tensor) in decayed else 0) * w
            w_norm, u_norm = w.norm(), u.norm()
            w -= rate * (w_norm / u_norm if w_norm > 0 and u_norm > 0 else 1) * u
        if step == ranks.SAVED_AT - 1:
            saved = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    return losses, saved


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lamb")


@pytest.fixture(scope="module")
def losses(folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for world in WORLDS:
        work = [(f"train {stage} {world}", ranks.train_and_save, stage, "lamb") for stage in STAGES]
        found |= ranks.run_ranks(world, folder, *work)
    moved = [(f"resume {stage}", ranks.resume, (stage, 2), 3 - stage, "lamb") for stage in STAGES]
    return found | ranks.run_ranks(1, folder, *moved)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world", WORLDS)
def test_every_stage_takes_the_steps_of_whole_tensors(
    losses: dict[str, list[float]],
    folder: Path,
    whole_tensors: tuple[list[float], dict[str, Tensor]],
    stage: int,
    world: int,
) -> None:
    expected_losses, expected = whole_tensors
    assert losses[f"train {stage} {world}"] == pytest.approx(expected_losses, rel=1e-6)
    found = read_weights(str(ranks.checkpoint_of(folder, stage, world)))
    for name, tensor in expected.items():
        # The gradient of a key bias is only rounding noise, hence the absolute tolerance.
        assert (found[name] - tensor).norm() <= 1e-6 * tensor.norm() + 3e-8, name


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_resumes_at_another_stage_and_world_size(losses: dict[str, list[float]], stage: int) -> None:
    assert losses[f"resume {stage}"] == pytest.approx(losses[f"train {stage} 2"][ranks.SAVED_AT :], rel=1e-5)


def test_a_zero_tensor_is_updated_as_by_adamw() -> None:
    tensor = torch.nn.Parameter(torch.zeros(3))
    tensor.grad = torch.tensor([1.0, -2.0, 0.0])
    Lamb([{"params": [tensor]}], lr=0.5, betas=(0.9, 0.99), eps=1e-6).step()
    torch.testing.assert_close(tensor.data, torch.tensor([-0.5, 0.5, 0.0]), atol=1e-5, rtol=0)


def operations_of_a_step(tensors: int) -> Counter[str]:
    """Operations of a step, but for views and for the counts of steps, which are on the CPU whatever the device."""
    parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(tensors)]
    optimizer = Lamb([{"params": parameters}], lr=0.5, betas=(0.9, 0.99), eps=1e-6)
    for parameter in parameters:
        parameter.grad = torch.ones(3)
    optimizer.step()
    for state in optimizer.state.values():
        state["step"] = Count(state["step"].item())
    with OperationCounter() as counter:
        optimizer.step()
    return counter.operations


class Count(float):
    """Stand-in for the tensor that counts steps."""

    def __add__(self, other: float) -> "Count":
        return Count(float(self) + other)

    def item(self) -> float:
        return float(self)


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """Dispatch mode that counts operations other than views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations[str(operation)] += not operation.is_view
        return operation(*args, **(kwargs or {}))


def test_the_operations_of_a_step_do_not_depend_on_the_number_of_tensors() -> None:
    assert operations_of_a_step(40) == operations_of_a_step(3)
