"""DeepSpeed engine of a single rank in this process, without Ray."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.model.perceiver import Perceiver
from perceiver_dist.training.zero.engine import build_engine


@contextmanager
def single_rank_engine(config: RunConfig) -> Iterator[Any]:
    """Build the engine that a run with one worker has, on the GPU if there is one.

    Args:
        config: Model and engine.

    Yields:
        The engine.
    """
    on_gpu = torch.cuda.is_available()
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    with tempfile.TemporaryDirectory() as scratch:
        # A file as rendezvous needs no free port.
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo", init_method=f"file://{scratch}/rendezvous", rank=0, world_size=1
        )
        torch.manual_seed(config.train.seed)
        model = Perceiver(config.model, config.heads).to("cuda" if on_gpu else "cpu")
        yield build_engine(model, config, world_size=1)
        distributed.destroy_process_group()
