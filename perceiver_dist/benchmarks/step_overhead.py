"""Benchmark of framework overhead: step time of a full run against a bare DeepSpeed loop.

Both have one rank with one thread on one core, and the same model, engine and order of sources. The bare loop has its
units in memory and logs nothing; the full run reads, decodes, checks, logs and tracks. Readers, Ray, the tracker and
MLflow have the other cores, so that the ratio is what the framework costs a step, not what reading takes from it. The
first windows, in which processes start and buffers fill, and the last one do not count.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import StringIO
from statistics import mean, median
from typing import Literal

import torch
from rich.console import Console

from perceiver_dist.benchmarks import DEFAULT_CONFIG
from perceiver_dist.benchmarks.core_affinity import rank_on_own_core, split_cores
from perceiver_dist.benchmarks.one_rank import single_rank_engine
from perceiver_dist.benchmarks.processes import measure_in_subprocess, run_measurement
from perceiver_dist.benchmarks.result_table import ResultTable
from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.config.command_line import parse_run, run_parser
from perceiver_dist.config.run_config import RunConfig, StorageConfig
from perceiver_dist.data.batches import Batch, to_batch
from perceiver_dist.data.shard_indexing import list_shards
from perceiver_dist.errors import UserError
from perceiver_dist.metrics.losses import loss_per_sample
from perceiver_dist.training.datasets import training_units
from perceiver_dist.training.driver import run_training
from perceiver_dist.training.prepare import resolve, with_demo_data
from perceiver_dist.training.tracker.logged_metrics import StepMetrics, from_jsonl
from perceiver_dist.training.tracker.status import TrainingStatus
from perceiver_dist.training.zero.engine import set_learning_rate
from perceiver_dist.training.zero.learning_rate import learning_rate
from pipelines.inspection.shard_access import index_shards
from pipelines.shards.source import SourceConfig
from pipelines.storage.files import read_text
from pipelines.units.schedule import Schedule

_MODULE = "perceiver_dist.benchmarks.step_overhead"
_WINDOW = 10
"""Steps over which a step time is averaged, the full run's train.log_every."""
_FIRST_WINDOWS = 3
"""Warm-up windows that do not count."""
_STEPS_IN_MEMORY = 30
"""Steps whose units the bare loop holds in memory and repeats; several of every source of the default run."""


@dataclass(frozen=True)
class OverheadTask:
    """Task of one measuring process.

    Attributes:
        loop: "bare" for the DeepSpeed loop, "full" for a full run.
        config: YAML file of the run.
        steps: Number of steps.
        folder: Storage of the run.
    """

    loop: Literal["bare", "full"]
    config: str
    steps: int
    folder: str


@dataclass(frozen=True)
class StepTimes:
    """Result of one measuring process.

    Attributes:
        seconds: Step time of each window.
        waiting: Fraction of each window in which the rank waited for data.
        cpu_seconds: CPU time of the rank's process per step, with all its threads. Other programs on the machine
            change it less than the step time.
    """

    seconds: list[float]
    waiting: list[float]
    cpu_seconds: float


def measure_overhead(config: str = DEFAULT_CONFIG, steps: int = 300, repeats: int = 3) -> ResultTable:
    """Measure what Ray Train, Ray Data and MLflow add to a step of a bare DeepSpeed loop.

    Args:
        config: YAML file of a run; it trains with one worker.
        steps: Steps of each loop; the first 30 and the last 10 do not count.
        repeats: Processes per loop. The two take turns, so that a machine whose speed drifts treats them alike.

    Raises:
        UserError: An option is out of range, there is only one core, or a process failed.
    """
    split_cores()
    if steps < (_FIRST_WINDOWS + 2) * _WINDOW or repeats < 1:
        raise UserError(
            f"--steps is {steps} and --repeats {repeats}, must be at least {(_FIRST_WINDOWS + 2) * _WINDOW} and 1"
        )
    found: dict[Literal["bare", "full"], list[StepTimes]] = {"bare": [], "full": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats):
            for loop, measured in found.items():
                task = OverheadTask(loop, config, steps, f"{folder}/{number}" if loop == "full" else folder)
                measured.append(measure_in_subprocess(_MODULE, task, StepTimes, {"OMP_NUM_THREADS": "1"}))
    bare = median(median(one.seconds) for one in found["bare"])
    bare_cpu = median(one.cpu_seconds for one in found["bare"])
    rows = []
    for loop, measured in found.items():
        medians = [median(one.seconds) for one in measured]
        cpu = median(one.cpu_seconds for one in measured)
        waiting = median(median(one.waiting) for one in measured)
        figures = (median(medians), min(medians), max(medians))
        rows.append(
            [
                {"bare": "bare DeepSpeed loop", "full": "full run"}[loop],
                *(f"{1000 * figure:.1f}" for figure in figures),
                f"{median(medians) / bare:.3f}",
                f"{1000 * cpu:.1f}",
                f"{cpu / bare_cpu:.3f}",
                f"{waiting:.1%}",
            ]
        )
    return ResultTable(("loop", "step ms", "min", "max", "ratio", "CPU ms", "ratio", "data wait"), rows)


def measure(task: OverheadTask) -> StepTimes:
    """Measure a loop in this process.

    Args:
        task: The loop and its run.
    """
    options = (f"--train.steps={task.steps}", "--train.num_workers=1", "--train.eval_every=0")
    config, _ = parse_run(
        run_parser(""), ["--config", task.config, *options, f"--train.log_every={_WINDOW}"], [], RunConfig
    )
    config = replace(config, storage=StorageConfig(path=task.folder, run_name="measured"))
    return _full_run(config) if task.loop == "full" else _bare_loop(config)


def _full_run(config: RunConfig) -> StepTimes:
    step = 0
    # Time and the rank's CPU time, both in seconds, over the windows that count.
    seen: list[tuple[float, float]] = []

    def follow(status: TrainingStatus) -> None:
        nonlocal step
        step = status.latest.step

    def watch(cpu_seconds: float) -> None:
        if _FIRST_WINDOWS * _WINDOW <= step < config.train.steps - _WINDOW:
            seen.append((time.perf_counter(), cpu_seconds))

    with rank_on_own_core(watch):
        run_training(config, Console(file=StringIO()), follow)
    history = from_jsonl(read_text(RunFolder.of(config).metrics) or "")
    windows = [metrics for metrics in history if isinstance(metrics, StepMetrics)]
    # The last window includes the end of the run.
    counted = windows[_FIRST_WINDOWS:-1]
    seconds = [window.step_seconds for window in counted]
    if len(seen) < 2:
        raise UserError(
            f"--steps is {config.train.steps}: those that count were over before the driver saw them; take more"
        )
    # The driver learns of a step up to half a second late, so a share of the time is exacter than a number of steps.
    (began, cpu_before), (ended, cpu_after) = seen[0], seen[-1]
    return StepTimes(
        seconds,
        [window.data_wait_fraction for window in counted],
        (cpu_after - cpu_before) / (ended - began) * mean(seconds),
    )


def _bare_loop(config: RunConfig) -> StepTimes:
    own, _ = split_cores()
    os.sched_setaffinity(0, own)
    config = resolve(config)
    config = with_demo_data(config)
    seconds: list[float] = []
    cpu: list[float] = []
    with single_rank_engine(config) as engine:
        in_memory = list(_first_steps(config, engine.device))
        cpu.append(time.process_time())
        for window in range(config.train.steps // _WINDOW):
            started = time.perf_counter()
            for step in range(window * _WINDOW, (window + 1) * _WINDOW):
                set_learning_rate(engine, learning_rate(step, config.train.steps, config.scaled_optim))
                source, batches = in_memory[step % len(in_memory)]
                for batch in batches:
                    logits = engine(batch.arrays, batch.present, source.name)
                    loss = loss_per_sample(logits.float(), batch.labels, source.task).mean()
                    engine.backward(loss)
                    engine.step()
            seconds.append((time.perf_counter() - started) / _WINDOW)
            cpu.append(time.process_time())
    # The same windows as for the full run, so that both are means over the same steps.
    counted = seconds[_FIRST_WINDOWS:-1]
    cpu_seconds = (cpu[-2] - cpu[_FIRST_WINDOWS]) / (len(counted) * _WINDOW)
    return StepTimes(counted, [0.0] * len(counted), cpu_seconds)


def _first_steps(config: RunConfig, device: torch.device) -> Iterator[tuple[SourceConfig, list[Batch]]]:
    schedule, lanes = Schedule(config.weights), config.train.lanes
    shards = list_shards(config)
    makers = {
        source.name: training_units(config, source, index_shards(shards[source.name], config.index_folder))
        for source in config.sources
    }
    for step in range(_STEPS_IN_MEMORY):
        maker = makers[schedule.source_at(step)]
        first = schedule.steps_before(maker.source.name, step) * lanes
        units = [maker.make(number) for number in range(first, first + lanes)]
        yield maker.source, [to_batch(unit, device) for unit in units]


if __name__ == "__main__":
    run_measurement(OverheadTask, measure)
