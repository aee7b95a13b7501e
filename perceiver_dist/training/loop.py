"""Training loop of one rank: restore, step, evaluate, save."""

import math
import os
import time
from dataclasses import replace
from functools import partial
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch import Tensor

from perceiver_dist.checkpoint.format import StoredCheckpoint, load_weights
from perceiver_dist.checkpoint.manifest import StoredFile, TrainingProgress
from perceiver_dist.checkpoint.retention import StartingPoint
from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.checkpoint.stored_model import find_model
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.data.batches import UnitStream
from perceiver_dist.data.reading_memory import prefetched_blocks
from perceiver_dist.data.shard_indexing import evaluation_dataset
from perceiver_dist.metrics.evaluate import evaluate
from perceiver_dist.metrics.metric_totals import Scores
from perceiver_dist.metrics.subsets import modality_subsets
from perceiver_dist.model.perceiver import Perceiver
from perceiver_dist.training.augment.dropout import draw_kept
from perceiver_dist.training.augment.hidden_tokens import hide_tokens
from perceiver_dist.training.augment.mixing import mix
from perceiver_dist.training.bad_samples import BadSamples
from perceiver_dist.training.datasets import TRAINING_DATASET, block_order
from perceiver_dist.training.early_stop import EarlyStop
from perceiver_dist.training.fine_tuning import load_trained_weights
from perceiver_dist.training.forward_time import ForwardTime
from perceiver_dist.training.liveness.hang import WAITING_FOR_DATA, HangBounds
from perceiver_dist.training.liveness.rank_state import RankState
from perceiver_dist.training.liveness.stragglers import RankTimes
from perceiver_dist.training.preemption import StopSignal
from perceiver_dist.training.signals.step_signals import StepSignals
from perceiver_dist.training.skipped_steps import SkippedSteps
from perceiver_dist.training.step_statistics import StepStatistics
from perceiver_dist.training.tracker.handle import TrackerHandle
from perceiver_dist.training.tracker.logged_metrics import StepMetrics
from perceiver_dist.training.zero.accumulation import micro_steps_of_rank
from perceiver_dist.training.zero.async_save import CheckpointWriter
from perceiver_dist.training.zero.average import WeightAverage
from perceiver_dist.training.zero.engine import build_engine, set_learning_rate
from perceiver_dist.training.zero.learning_rate import learning_rate
from perceiver_dist.training.zero.optimizer import adam_step
from perceiver_dist.training.zero.partitions import load_optimizer
from pipelines.units.schedule import Schedule

_SECONDS_BETWEEN_CHECKS = 0.1
"""How often a rank that waits for a checkpoint asks the tracker whether it is complete."""


def train_rank(config: RunConfig, tracker: TrackerHandle, state: RankState, start: StartingPoint) -> None:
    """Train as one rank of a group of Ray Train workers, from the checkpoint that the tracker chose to the last step.

    Args:
        config: The run's resolved configuration.
        tracker: The `Tracker` actor, as the rank's group reaches it.
        state: Step and activity of the rank, kept current for reports of errors and hangs.
        start: The starting point that the tracker chose for the group.
    """
    _Rank(config, tracker, state, start).train()


class _Rank:
    """Engine, data and progress of one rank."""

    def __init__(
        self, config: RunConfig, tracker: TrackerHandle, state: RankState, start: StartingPoint
    ) -> None:
        self.config, self.tracker, self.state = config, tracker, state
        self.optim = config.scaled_optim
        self.rank, self.world_size = state.rank, ray.train.get_context().get_world_size()
        on_cpu = self.config.train.device == "cpu"
        self.device = torch.device("cpu") if on_cpu else ray.train.torch.get_device()
        # Ray sets the variable for a worker's CPUs. torch has been loaded before, if the worker was forked.
        # OpenMP allows a list, for nested parallelism, which torch does not use.
        threads = os.environ.get("OMP_NUM_THREADS", str(torch.get_num_threads())).partition(",")[0]
        torch.set_num_threads(int(threads))
        self.schedule = Schedule(self.config.weights)
        self.sources = {source.name: source for source in self.config.sources}
        state.begin("building the model")
        self.start = start
        self.step = state.step = self.start.step
        self.engine = self._restore()
        self.average = (
            WeightAverage(self.engine, self.optim.ema_decay, adam_step(self.engine))
            if self.optim.ema_decay
            else None
        )
        self.checkpoints = CheckpointWriter(
            self.engine, RunFolder.of(self.config), start.writer, state.advancing
        )
        self.blocks = block_order(self.config, self.step)
        self.prefetch = prefetched_blocks(self.config, self.world_size)
        self.stream = UnitStream(_dataset_shard(TRAINING_DATASET), self.device, self.prefetch)
        # On one rank, whatever the number of ranks before and now.
        before = self.start.unlogged_losses if self.rank == 0 else {}
        self.statistics = StepStatistics(list(self.sources), self.device, before)
        self.forward_time = ForwardTime(self.device)
        self.signals = StepSignals(self.engine, self.config, self.schedule)
        self.stop_signal = StopSignal(self.tracker, HangBounds.of(config).collective_timeout)
        self.early_stop = EarlyStop(config.train, start.best, self.stop_signal.group)
        self.skipped = SkippedSteps(
            self.engine,
            self.config.train.max_skipped_steps,
            self.tracker,
            self.stop_signal.group,
            before=self.step - adam_step(self.engine),
        )
        self.bad_samples = BadSamples(
            list(self.sources), self.config.data.max_bad_fraction, self.tracker, self.device
        )
        if self.rank == 0:
            self.tracker.workers_started.remote(self.step, self.world_size)
        state.begin("reading the first units")

    def train(self) -> None:
        """Take the remaining steps, then evaluate with every subset of the modalities.

        A request of `StopSignal` saves in between, or saves and returns.
        """
        train = self.config.train
        evaluated_last = False
        # A run that has stopped early, and is resumed for its last evaluation, takes no further step.
        while self.step < self.config.last_step and not self.early_stop.reason:
            self._take_step()
            self.state.has_stepped = True
            # The last step is always logged and saved, whatever the intervals.
            last = self.step == self.config.last_step
            if last or self.step % train.log_every == 0:
                self._log()
            evaluates = train.eval_every > 0 and self.step % train.eval_every == 0
            # The last one follows after the loop. What chooses the best checkpoint comes before it is saved: a run that
            # pauses at `train.stop_at` has it on record, as one that does not.
            evaluates = evaluates and (not last or train.best_metric is not None)
            if evaluates:
                with self.statistics.paused():
                    self._evaluate(all_subsets=last)
                evaluated_last = last
            self.state.begin("collective")
            request = self.stop_signal.poll()
            # After the evaluation, so that a run resumed from this checkpoint has the evaluation on record.
            ends = last or bool(self.early_stop.reason)
            if evaluates or last or request or self.step % train.checkpoint_every == 0:
                with self.statistics.paused():
                    self._save(waits=ends or request == "stop")
            if request == "stop" and not ends:
                return
        reason = self.early_stop.reason if self.step < train.steps else ""
        # After the last checkpoint: a run that is lost here is resumed here, without a step to repeat.
        if not evaluated_last:
            self._evaluate(all_subsets=True)
        if reason and self.rank == 0:
            ray.get(self.tracker.ends.remote("", reason))

    def _restore(self) -> Any:
        # The same initial weights on every rank.
        torch.manual_seed(self.config.train.seed)
        model = Perceiver(self.config.model, self.config.heads).to(self.device)
        if self.start.checkpoint is None:
            trained = self.config.train.fine_tune
            if trained is not None:
                load_trained_weights(model, find_model(trained).weights(), trained)
            return build_engine(model, self.config, self.world_size)
        checkpoint = StoredCheckpoint(self.start.checkpoint)
        # Weights before the engine, which partitions them; moments after it, when their partitions exist.
        load_weights(model, checkpoint)
        engine = build_engine(model, self.config, self.world_size)
        load_optimizer(engine, checkpoint)
        return engine

    def _take_step(self) -> None:
        """Take one optimizer step: accumulate the gradients of this rank's units of the step's source."""
        self.state.enter("training", self.step + 1)
        train = self.config.train
        source = self.sources[self.schedule.source_at(self.step)]
        step_units = self._units_at(self.step, source.name)
        first_block = self.blocks.first_block(self.step)
        set_learning_rate(self.engine, learning_rate(self.step, train.steps, self.optim))
        losses: dict[int, Tensor] = {}
        self.signals.begin_step(self.step)
        for micro_step in micro_steps_of_rank(self.rank, self.world_size, step_units, first_block):
            # Padding keeps the batch before: what it computes counts for nothing, but every rank has to take part in
            # ZeRO's collectives as often as the others, or they would wait for it without end.
            if not micro_step.is_padding:
                self.state.begin(WAITING_FOR_DATA)
                batch = self.stream.take(source.name, micro_step.unit)
                self.bad_samples.add(source.name, batch)
            self.state.begin("forward pass")
            mixed = mix(batch, source, train.seed)
            shown = hide_tokens(mixed.arrays, batch, source, self.config.model, train.seed)
            kept = draw_kept(batch, source.name, self.config, self.device)
            # In bf16 runs the engine enters autocast, see `deepspeed_config`.
            with self.forward_time.measured():
                logits = self.engine(shown.arrays, batch.present, source.name, shown.masked, *kept)
            loss = mixed.loss(logits.float(), batch.labels, source.task, self.optim.label_smoothing)
            self.state.begin("backward pass")
            self.engine.backward(loss if micro_step.weight == 1 else loss * micro_step.weight)
            self.state.begin("optimizer step")
            self.signals.before_update(self.step)
            self.engine.step()
            if micro_step.is_padding:
                continue
            losses[micro_step.unit] = loss.detach()
            self.statistics.add(source.name, loss.detach())
            if self.config.tracking.samples:
                self.tracker.saw_samples.remote(self.step, micro_step.unit, batch.keys)
        self.signals.end_step(self.step)
        self.step += 1
        if self.skipped.check(self.step, source.name, step_units, losses) and self.average:
            self.average.update()

    def _units_at(self, step: int, source: str) -> range:
        """Return the numbers of a source's units in its first step at or after `step`."""
        first = self.schedule.steps_before(source, step) * self.config.train.lanes
        return range(first, first + self.config.train.lanes)

    def _log(self) -> None:
        """Report the metrics since the last log, and fail if too many samples are bad. Both are collective."""
        train = self.config.train
        # The last step of a run that stops early is logged out of turn: a run that resumes here logs at the step, and
        # over the steps, that it would have had without the stop.
        out_of_turn = self.step % train.log_every != 0
        forward = self.forward_time.take()
        totals = self.statistics.close(
            self.stream.seconds_waited, forward, self.rank, self.world_size, out_of_turn
        )
        steps = totals.units / train.lanes
        norm = self.engine.get_global_grad_norm()
        on_gpu = self.device.type == "cuda"
        metrics = StepMetrics(
            step=self.step,
            losses=totals.losses,
            loss=totals.loss,
            seconds=totals.seconds,
            data_wait_fraction=totals.data_wait_fraction,
            learning_rate=learning_rate(self.step - 1, train.steps, self.optim),
            gradient_norm=float(norm) if norm is not None and math.isfinite(norm) else None,
            skipped_steps=float(self.skipped.count),
            samples_per_second=totals.units * train.micro_batch / totals.seconds,
            step_seconds=totals.seconds / steps,
            samples_seen=float(self.step * train.lanes * train.micro_batch),
            gpu_memory_bytes=float(torch.cuda.max_memory_allocated(self.device)) if on_gpu else None,
            signals=self.signals.close(),
            ranks=tuple(RankTimes(computing / steps, waiting / steps) for computing, waiting in totals.ranks),
        )
        if self.rank == 0:
            self.tracker.trained.remote(metrics)
        # Here and not at every step, because it is collective and waits for the device.
        self.bad_samples.check()

    def _evaluate(self, all_subsets: bool) -> None:
        self.state.enter("evaluating", self.step)
        model = self.engine if self.average is None else self.average.model(self.config)
        scores: dict[str, Scores] = {}
        for source in self.sources.values():
            shard = _dataset_shard(evaluation_dataset(source))
            if shard is None:
                continue
            # A new stream reads the held-out units from the beginning.
            batches = UnitStream(shard, self.device, self.prefetch)
            subsets = modality_subsets(source.modalities)
            scores[source.name] = evaluate(
                model,
                self.device,
                source,
                self.state.advancing(self.bad_samples.counted(source.name, batches)),
                subsets if all_subsets else subsets[:1],
                self.config.train.precision,
            )
        self.early_stop.evaluated(self.step, scores)
        self.bad_samples.wait_until_reported()
        if self.rank == 0:
            ray.get(self.tracker.evaluated.remote(self.step, scores, self.early_stop.best))

    def _save(self, waits: bool) -> None:
        """Save, either in the background or waiting until the checkpoint is complete.

        Args:
            waits: Whether to wait. The last checkpoint is waited for, since the process exits after it.
        """
        self.state.enter("saving", self.step)
        train = self.config.train
        progress = TrainingProgress(
            steps=self.step,
            samples_seen=self.step * train.lanes * train.micro_batch,
            world_size=self.world_size,
            zero_stage=self.config.deepspeed.zero_stage,
            optimizer_steps=adam_step(self.engine),
            best=self.early_stop.best,
        )
        # Read in the writing thread, since that waits for the device.
        self.checkpoints.save(progress, partial(self._report_saved, waits, self.statistics.sums()))
        if not waits:
            return
        self.checkpoints.wait()
        while (ending := ray.get(self.tracker.saved.remote(self.step))) is None:
            time.sleep(_SECONDS_BETWEEN_CHECKS)
        if ending:
            ray.get(self.tracker.ends.remote(ending, ""))

    def _report_saved(
        self, waits: bool, sums: Tensor, progress: TrainingProgress, outcome: StoredFile | str
    ) -> None:
        progress = replace(progress, unlogged_losses=self.statistics.unlogged_losses(sums))
        ray.get(self.tracker.rank_saved.remote(self.start.group, self.rank, waits, progress, outcome))


def _dataset_shard(name: str) -> Any:
    """Return this rank's split of a dataset, or None if the run has no such dataset."""
    try:
        return ray.train.get_dataset_shard(name)
    except KeyError:
        return None
