"""Gradient accumulation: which rank computes which units of a step, for any number of ranks up to the lanes.

A step has `lanes` units. Ray deals the units of a dataset to the ranks in turn, beginning with the dataset's first, so
where the ranks do not divide the lanes, some have one unit more in one step and one less in another. ZeRO's backward
pass is collective, so every rank has to take the same number of accumulation steps, `ceil(lanes / ranks)`: a rank
without a unit for the last one takes its last unit again, with weight 0.

DeepSpeed makes the mean over accumulation steps and ranks of all losses, so a unit counts 1 / (steps * ranks). It has
to count 1 / lanes. `loss_factor` is the quotient of the two, and 1 where the ranks divide the lanes: then nothing is
multiplied, and the bits of the loss stay as they are.
"""


def accumulation_steps(lanes: int, ranks: int) -> int:
    """Return how many backward passes every rank takes in a step.

    Args:
        lanes: Units of a step.
        ranks: Number of ranks, at most `lanes`.
    """
    return -(-lanes // ranks)


def loss_factor(lanes: int, ranks: int) -> float:
    """Return what a unit's loss is multiplied with, so that a step is the mean over its units.

    Args:
        lanes: Units of a step.
        ranks: Number of ranks, at most `lanes`.
    """
    return accumulation_steps(lanes, ranks) * ranks / lanes


def units_of_rank(rank: int, ranks: int, step_units: range, first_dealt: int) -> list[int]:
    """Return the units of a step that Ray hands to a rank, in order; at least one.

    Args:
        rank: The rank.
        ranks: Number of ranks, at most the number of units.
        step_units: Numbers of the step's units.
        first_dealt: Number of the first unit of the dataset, which went to rank 0.
    """
    return [unit for unit in step_units if (unit - first_dealt) % ranks == rank]
