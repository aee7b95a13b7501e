"""Gradient accumulation: which rank computes which units of a step, for any number of ranks up to the lanes.

A step has `lanes` units, in as many blocks, one after the other. Ray deals the blocks of a dataset to the ranks in
turn, so where the ranks do not divide the lanes, some have one unit more in one step and one less in another. ZeRO's
forward and backward passes are collective, so every rank has to take the same number of micro-steps,
`ceil(lanes / ranks)`. A rank without a unit for the last one computes its last unit again with weight 0: a padding
micro-step.

DeepSpeed averages the losses over micro-steps and ranks, so a unit counts 1 / (micro-steps * ranks). It has to count
1 / lanes. `loss_factor` is the quotient of the two, and 1 where the ranks divide the lanes: then nothing is multiplied,
and the bits of the loss stay as they are.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class MicroStep:
    """One forward and backward pass of a rank within an optimizer step.

    Attributes:
        unit: Number of the unit.
        weight: Factor of the unit's loss; 0 for padding.
        is_padding: Whether the unit is the one before, computed again only to take part in the collectives.
    """

    unit: int
    weight: float
    is_padding: bool


def accumulation_steps(lanes: int, ranks: int) -> int:
    """Return the number of micro-steps that every rank takes in an optimizer step.

    Args:
        lanes: Units of a step.
        ranks: Number of ranks, at most `lanes`.
    """
    return -(-lanes // ranks)


def loss_factor(lanes: int, ranks: int) -> float:
    """Return the factor of a unit's loss that makes a step the mean over its units.

    Args:
        lanes: Units of a step.
        ranks: Number of ranks, at most `lanes`.
    """
    return accumulation_steps(lanes, ranks) * ranks / lanes


def units_of_rank(rank: int, ranks: int, step_units: range, first_block: int) -> list[int]:
    """Return the units of a step that Ray hands to a rank, in order; at least one.

    Args:
        rank: The rank.
        ranks: Number of ranks, at most the number of units.
        step_units: Numbers of the step's units.
        first_block: Number of the block with the first of them (`pipelines.units.block_order.BlockOrder`).
    """
    return [unit for lane, unit in enumerate(step_units) if (first_block + lane) % ranks == rank]


def micro_steps_of_rank(rank: int, ranks: int, step_units: range, first_block: int) -> list[MicroStep]:
    """Return the micro-steps of a rank in an optimizer step, the same number for every rank.

    Args:
        rank: The rank.
        ranks: Number of ranks, at most the number of units.
        step_units: Numbers of the step's units.
        first_block: Number of the block with the first of them (`pipelines.units.block_order.BlockOrder`).
    """
    lanes = len(step_units)
    units = units_of_rank(rank, ranks, step_units, first_block)
    steps = [MicroStep(unit, loss_factor(lanes, ranks), is_padding=False) for unit in units]
    missing = accumulation_steps(lanes, ranks) - len(units)
    return steps + [MicroStep(units[-1], 0.0, is_padding=True)] * missing
