"""Asynchronous checkpointing of one rank: a thread copies the partitions that the rank owns, and then writes the copy.

Forward and backward passes do not change weights, so the copy overlaps with those of the next step. Only the optimizer
step waits for it.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from perceiver_dist.checkpoint.format import Chunk, Span, file_header, rank_file, write_rank_file
from perceiver_dist.checkpoint.manifest import StoredFile, TrainingProgress
from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.training.zero.optimizer import base_optimizer
from perceiver_dist.training.zero.partitions import TensorPartition, owned_partitions, whole_shapes
from pipelines.storage.files import STORAGE_ERRORS, join, reason_of


class CheckpointWriter:
    """Writer of one rank's checkpoint files, one at a time.

    It holds one copy of the rank's partitions, in memory that is allocated once.

    Args:
        engine: The DeepSpeed engine.
        folder: The run's folder.
        writer: Id of the group of workers, for the names of its files.
        watched: Passes the pieces of a file on as they are written.
    """

    def __init__(
        self,
        engine: Any,
        folder: RunFolder,
        writer: str,
        watched: Callable[[Iterable[Chunk]], Iterator[Chunk]] = iter,
    ) -> None:
        self._engine = engine
        self._folder = folder
        self._writer = writer
        self._watched = watched
        partitions = owned_partitions(engine)
        spans = [(of.part, of.name, Span(of.start, of.values.numel())) for of in partitions]
        self._header = file_header(spans, whole_shapes(engine))
        on_gpu = engine.device.type == "cuda"
        # A stream of its own, so that the copy runs beside the kernels of the next step.
        self._stream = torch.cuda.Stream(engine.device) if on_gpu else None  # type: ignore[no-untyped-call]
        # Writing zeros makes the operating system map the pages now, and not during the first save.
        self._copy = torch.zeros(sum(span.numel for *_, span in spans), pin_memory=on_gpu)
        # One thread: copy and write are queued in this order.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._copying: Future[None] | None = None
        self._writing: Future[None] | None = None
        base_optimizer(engine).register_step_pre_hook(lambda *_: self.wait_for_copy())

    def save(
        self, progress: TrainingProgress, report: Callable[[TrainingProgress, StoredFile | str], None]
    ) -> None:
        """Start to copy and write the training state. Waits first if the previous file is still being written.

        Args:
            progress: Progress of the run.
            report: Called in the writing thread with the stored file, or with the reason why it could not be stored.
        """
        self.wait()
        partitions = owned_partitions(self._engine)
        # The copy has to start after the optimizer's kernels, which may still be queued.
        trained = torch.cuda.current_stream().record_event() if self._stream else None
        self._copying = self._thread.submit(self._copy_all, partitions, trained)
        self._writing = self._thread.submit(self._write, self._copying, progress, report)

    def wait_for_copy(self) -> None:
        """Block until the training state may change. The optimizer calls it before each of its steps."""
        if self._copying is not None:
            self._copying.result()
            self._copying = None

    def wait(self) -> None:
        """Block until the newest file is stored or has failed, and its `report` has returned."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _copy_all(self, partitions: list[TensorPartition], trained: torch.cuda.Event | None) -> None:
        sizes = [partition.values.numel() for partition in partitions]
        targets = torch.split(self._copy, sizes)
        if self._stream is None or trained is None:
            for target, partition in zip(targets, partitions, strict=True):
                # NumPy releases the GIL and bypasses the cache; torch's own copy takes half as long again.
                np.copyto(target.numpy(), partition.values.numpy())
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(trained)
            for target, partition in zip(targets, partitions, strict=True):
                target.copy_(partition.values, non_blocking=True)
        self._stream.synchronize()

    def _write(
        self,
        copying: Future[None],
        progress: TrainingProgress,
        report: Callable[[TrainingProgress, StoredFile | str], None],
    ) -> None:
        copying.result()
        name = rank_file(self._engine.global_rank, self._engine.dp_world_size, self._writer)
        uri = join(self._folder.checkpoint(progress.steps), name)
        outcome: StoredFile | str
        try:
            outcome = write_rank_file(uri, self._header, self._copy, self._watched)
        except STORAGE_ERRORS as error:
            outcome = reason_of(error)
        report(progress, outcome)
