"""The last collectives of a process, which a hang's file shows."""

from pathlib import Path

import torch
from torch import distributed

from perceiver_dist.training.liveness.collectives import last_collectives


def test_the_newest_collectives_are_shown_in_order_with_their_shapes(tmp_path: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        for size in range(10, 17):
            distributed.all_reduce(torch.ones(size))
        distributed.broadcast(torch.ones(2, 3), 0)
        *before, last = last_collectives().splitlines()
    finally:
        distributed.destroy_process_group()
    assert len(before) == 4
    assert "gloo:all_reduce of [[16]], " in before[-1]
    assert "gloo:broadcast of [[2, 3]], " in last
    numbers = [int(line.split()[1].rstrip(":")) for line in [*before, last]]
    assert numbers == list(range(numbers[0], numbers[0] + 5))
