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


class Lamb(Optimizer):
    """LAMB optimizer. Its state has the names of AdamW's, so that both share the checkpoint format.

    Args:
        groups: Parameter groups, each with a weight decay.
        lr: Learning rate.
        betas: Decay rates of the running means of the gradient and of its square.
        eps: Added to the square root of the mean square; 1e-6 in the paper's code.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float = 1e-6,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self._pieces: dict[Tensor, Sequence[Piece]] = {
            parameter: [Piece(number, 0, parameter.numel())] for number, parameter in enumerate(parameters)
        }
        self._tensors = len(parameters)
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

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override] # noqa: ARG002 # torch's signature
        """Take a step.

        Args:
            closure: Not used; torch's signature.
        """
        updated = [
            (parameter, self._update(parameter, group), group["lr"])
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if not updated:
            return
        sums = torch.zeros(2, self._tensors, dtype=torch.float64, device=updated[0][0].device)
        for parameter, update, _ in updated:
            for row, values in zip(sums, (parameter.view(-1), update), strict=True):
                for piece in self._pieces[parameter]:
                    norm = torch.linalg.vector_norm(values[piece.start : piece.stop], dtype=torch.float64)
                    row[piece.tensor] += norm.square()
        # All norms first: a parameter may change only when every rank has the norms of its tensor.
        weights, updates = self._all_reduce(sums)
        ratios = torch.where((weights > 0) & (updates > 0), (weights / updates).sqrt(), 1.0)
        for parameter, update, rate in updated:
            for piece in self._pieces[parameter]:
                part = update[piece.start : piece.stop].mul_(rate * ratios[piece.tensor])
                parameter.view(-1)[piece.start : piece.stop].sub_(part)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Update the moments, and return AdamW's update (elements,) at learning rate 1."""
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            # A tensor as in torch's AdamW, so that `set_adam_step` works for both.
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        state["step"] += 1
        (beta1, beta2), steps = group["betas"], state["step"].item()
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (square / (1 - beta2**steps)).sqrt_().add_(group["eps"])
        update = mean.div(1 - beta1**steps).div_(root).add_(parameter, alpha=group["weight_decay"])
        return update.view(-1)
