"""Needs of a run on GPUs by name: the largest micro-batch that fits, and its duration where throughput was measured.

A duration is predicted only for a card in measured_throughput.yaml. The rate there, in FLOP/s of the products that are
computed, is that of the row with the run's precision and way of cross-attention whose micro-batch and model are
nearest; the run's FLOPs divided by it are its time. Reading, evaluation, checkpoints and communication are not
included.
"""

from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from typing import Any

import yaml

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.model.attention import attention_path
from perceiver_dist.model.cost import forward_flops
from perceiver_dist.preflight.memory import largest_micro_batch
from pipelines.units.schedule import Schedule

GPU_MEMORY = {
    "NVIDIA L4": 24e9,
    "NVIDIA A10G": 24e9,
    "NVIDIA L40S": 48e9,
    "NVIDIA A100-SXM4-40GB": 40e9,
    "NVIDIA A100-SXM4-80GB": 80e9,
    "NVIDIA H100 80GB HBM3": 80e9,
    "NVIDIA H200": 141e9,
}
"""Bytes of memory by card, as NVIDIA's data sheets state it; names as `torch.cuda.get_device_name` returns them."""
_USABLE = 0.9
"""Share of a card's memory that a run may fill. The rest is for what `training_memory` leaves out (the CUDA context,
cuBLAS's workspaces, fragmentation), and for its error; nine tenths is a choice, not a measurement."""
THROUGHPUT_FILE = "perceiver_dist/preflight/measured_throughput.yaml"
"""The file of measured throughput, as named to users."""


@dataclass(frozen=True)
class MeasuredThroughput:
    """Row of measured_throughput.yaml, where the fields are explained.

    Attributes:
        gpu: The card's name, as `torch.cuda.get_device_name` returns it.
        model: Setting that was measured.
        way: How cross-attention is computed, and whether latent layers are compiled.
        precision: fp32 or bf16.
        micro_batch: Samples in a step.
        samples_per_second: Of training.
        forward_gflops: FLOPs of one sample's forward pass as computed, in 1e9.
        commit: The code that was measured.
        date: Day of the measurement.
    """

    gpu: str
    model: str
    way: str
    precision: str
    micro_batch: int
    samples_per_second: float
    forward_gflops: float
    commit: str
    date: str

    @property
    def flops_per_second(self) -> float:
        """FLOP/s of forward and backward as computed; backward has two products for each of forward."""
        return 3e9 * self.forward_gflops * self.samples_per_second

    def as_yaml(self) -> str:
        """Return the row as it stands in measured_throughput.yaml."""
        return (
            "- "
            + yaml.safe_dump(asdict(self), default_flow_style=True, sort_keys=False, width=10_000).strip()
        )


def measured_throughput() -> list[MeasuredThroughput]:
    """Return the rows of measured_throughput.yaml."""
    file = Path(__file__).with_name(Path(THROUGHPUT_FILE).name)
    rows = yaml.safe_load(file.read_text(encoding="utf-8"))
    return [MeasuredThroughput(**{**row, "date": str(row["date"])}) for row in rows]


def largest_micro_batches(config: RunConfig) -> dict[str, int]:
    """Return the largest micro-batch that fits on each card of `GPU_MEMORY`, with the run's model and workers.

    Args:
        config: The configuration; it is taken to train on CUDA, whatever its device.

    Returns:
        Samples by card; 0 where not even one fits.

    Raises:
        UserError: The model cannot be built.
    """
    return {gpu: largest_micro_batch(config, _USABLE * memory) for gpu, memory in GPU_MEMORY.items()}


def durations(config: RunConfig) -> dict[str, dict[str, Any] | str]:
    """Return the duration of a run on each card whose throughput was measured.

    Args:
        config: The configuration; it is taken to train on CUDA, whatever its device.

    Returns:
        By card, a mapping for JSON: samples_per_second of one card, hours of the run on all of its workers, gpu_hours,
        and measured, the measurement that they are computed from. A text for cards without one.
    """
    measured = [row.gpu for row in measured_throughput()]
    return {gpu: _duration(gpu, config) for gpu in dict.fromkeys([*GPU_MEMORY, *measured])}


def _duration(gpu: str, config: RunConfig) -> dict[str, Any] | str:
    way, train = attention_path(config.model, "cuda"), config.train
    wanted = (gpu, way, train.precision)
    rows = [row for row in measured_throughput() if (row.gpu, row.way, row.precision) == wanted]
    if not rows:
        return "not measured: run `python jobs/benchmark.py gpu` on one"
    flops, samples = _training_flops(config), train.steps * train.lanes * train.micro_batch

    def distance(row: MeasuredThroughput) -> float:
        size = flops / samples / (3e9 * row.forward_gflops)
        return abs(log(train.micro_batch / row.micro_batch)) + abs(log(size))

    nearest = min(rows, key=distance)
    gpu_hours = flops / nearest.flops_per_second / 3600
    return {
        "samples_per_second": samples / gpu_hours / 3600,
        "hours": gpu_hours / train.max_workers,
        "gpu_hours": gpu_hours,
        "measured": f"{nearest.model}, {nearest.way}, {nearest.precision}, micro-batch {nearest.micro_batch}: "
        f"{nearest.samples_per_second:g} samples/s, {nearest.flops_per_second / 1e12:.0f} TFLOP/s "
        f"(commit {nearest.commit}, {nearest.date})",
    }


def _training_flops(config: RunConfig) -> float:
    """Return the FLOPs of a run's products; activation checkpointing computes the forward pass twice."""
    schedule, train = Schedule(config.weights), config.train
    passes = 4 if config.model.activation_checkpointing else 3
    batches = {source.name: schedule.steps_before(source.name, train.steps) for source in config.sources}
    forward = sum(
        batches[source.name] * forward_flops(config.model, source.modalities, "cuda")
        for source in config.sources
    )
    return float(passes * train.lanes * train.micro_batch * forward)
