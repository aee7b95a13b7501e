"""LAMB (You et al. 2020, arXiv 1904.00962, algorithm 2), exact when tensors are split over ranks.

LAMB scales AdamW's update u of each tensor w, including weight decay, by the trust ratio of that tensor:

    w  <-  w - rate * |w| / |u| * u,          with a ratio of 1 if one of the norms is 0.

ZeRO concatenates tensors (stages 1 and 2) or cuts each of them (stage 3), and gives every rank a span. An optimizer
that treats such a span as a tensor computes the ratio of a piece of a tensor, or of several tensors together, which
depends on the number of ranks. Here each rank knows which pieces of which tensors it holds. It sums their squares by
tensor, one all-reduce adds the sums of all ranks (two numbers per tensor), and every piece gets the ratio of its whole
tensor.

Why not a known one: none is exact under ZeRO. DeepSpeed's FusedLamb, like others, computes the norms of what it is
given, and is not among the optimizers that DeepSpeed's ZeRO supports.

As in the algorithm, moments are bias-corrected, the ratio is not clamped, and biases and norms are scaled like all
other tensors; `optax.lamb` does the same. Squares are summed in fp64, so that the ratio does not depend on the
partitioning.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from perceiver_dist.checkpoint.format import MOMENTS


@dataclass(frozen=True)
class Piece:
    """Consecutive elements of one tensor within a parameter of the optimizer.

    Attributes:
        tensor: Index of the tensor in the model.
        start: First element in the optimizer's flattened parameter.
        stop: One past the last element.
    """

    tensor: int
    start: int
    stop: int


@dataclass(frozen=True)
class _Pieces:
    """All pieces of a parameter group.

    Attributes:
        numbers: (pieces,) int64 on the parameters' device, index of each piece's tensor in the model.
        weights: The elements of each piece, views of the parameters.
        updates: What is subtracted from them at learning rate 1.
    """

    numbers: Tensor
    weights: list[Tensor]
    updates: list[Tensor]


class Lamb(Optimizer):
    """LAMB optimizer. Its state has the names of AdamW's, so that both share the checkpoint format.

    Args:
        groups: Parameter groups, each with a weight decay.
        lr: Learning rate.
        betas: Decay rates of the running means of the gradient and of its square.
        eps: Added to the square root of the mean square.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self._pieces: dict[Tensor, Sequence[Piece]] = {
            parameter: [Piece(number, 0, parameter.numel())] for number, parameter in enumerate(parameters)
        }
        self._tensors = len(parameters)
        self._numbers: dict[tuple[int, ...], Tensor] = {}
        self._all_reduce: Callable[[Tensor], Tensor] = lambda sums: sums

    def split(
        self, pieces: Mapping[Tensor, Sequence[Piece]], tensors: int, all_reduce: Callable[[Tensor], Tensor]
    ) -> None:
        """Set the pieces of tensors in each parameter. Before, each parameter counts as one tensor.

        Args:
            pieces: Pieces in every parameter, of any shape, that this rank updates. Elements in between are padding.
            tensors: Number of tensors of the model.
            all_reduce: (2, tensors) fp64 sums of this rank -> sums over all ranks. Called at every step, on every rank.
        """
        self._pieces, self._tensors, self._all_reduce = dict(pieces), tensors, all_reduce
        self._numbers = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override] # noqa: ARG002 # torch's signature
        """Take a step.

        Args:
            closure: Not used; torch's signature.
        """
        groups = [
            (group, [parameter for parameter in group["params"] if parameter.grad is not None])
            for group in self.param_groups
        ]
        pieces = [self._cut(parameters, self._updates(parameters, group)) for group, parameters in groups]
        updated = [parameter for _, parameters in groups for parameter in parameters]
        if not updated:
            return
        sums = torch.zeros(2, self._tensors, dtype=torch.float64, device=updated[0].device)
        for of_group in pieces:
            for row, values in zip(sums, (of_group.weights, of_group.updates), strict=True):
                if values:
                    norms = torch._foreach_norm(values, 2, dtype=torch.float64)
                    row.index_add_(0, of_group.numbers, torch.stack(norms).square())
        # All norms first: a parameter may change only when every rank has the norms of its tensor.
        weights, updates = self._all_reduce(sums)
        ratios = torch.where((weights > 0) & (updates > 0), (weights / updates).sqrt(), 1.0)
        for (group, _), of_group in zip(groups, pieces, strict=True):
            if of_group.updates:
                factors = group["lr"] * ratios[of_group.numbers]
                torch._foreach_mul_(of_group.updates, factors.unbind())
                torch._foreach_sub_(of_group.weights, of_group.updates)

    def _cut(self, parameters: list[Tensor], updates: list[Tensor]) -> "_Pieces":
        """Cut parameters and their updates into the pieces that belong to one tensor each."""
        cuts = [
            (of_parameter, update, piece)
            for of_parameter, update in zip(parameters, updates, strict=True)
            for piece in self._pieces[of_parameter]
        ]
        key = tuple(id(parameter) for parameter in parameters)
        if key not in self._numbers:
            numbers = torch.tensor([piece.tensor for *_, piece in cuts], dtype=torch.int64)
            self._numbers[key] = numbers.to(parameters[0].device) if parameters else numbers
        return _Pieces(
            self._numbers[key],
            [parameter.view(-1)[piece.start : piece.stop] for parameter, _, piece in cuts],
            [update.view(-1)[piece.start : piece.stop] for _, update, piece in cuts],
        )

    def _updates(self, parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Update the moments, and return AdamW's updates at learning rate 1, in the parameters' shapes."""
        if not parameters:
            return []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                # A tensor as in torch's AdamW, so that `set_adam_step` works for both.
                state["step"] = torch.tensor(0.0)
                state |= {name: torch.zeros_like(parameter) for name in MOMENTS}
            state["step"] += 1
        states = [self.state[parameter] for parameter in parameters]
        gradients = [gradient for parameter in parameters if (gradient := parameter.grad) is not None]
        means, squares = ([state[name] for state in states] for name in MOMENTS)
        # On the CPU, where reading them waits for nothing.
        steps = [state["step"].item() for state in states]
        beta1, beta2 = group["betas"]
        # One kernel for many tensors each.
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        roots = torch._foreach_div(squares, [1 - beta2**step for step in steps])
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(means, [1 - beta1**step for step in steps])
        torch._foreach_div_(updates, roots)
        torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        return list(updates)
