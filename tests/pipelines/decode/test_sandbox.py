"""Tests of sandboxed decoding in real Ray tasks: a crash or hang costs only its sample, and all else is unchanged."""

import os
import signal
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray import cloudpickle
from tar_files import index_of, write_tar

from perceiver_dist.data.batches import Batch, UnitStream
from perceiver_dist.modalities import ImageInput, ModalityInput
from pipelines.augment.randomness import SampleRandomness
from pipelines.decode.sample import Arrays
from pipelines.decode.sandbox import sandboxed
from pipelines.errors import SampleError
from pipelines.limits import Limits
from pipelines.shards.sample_reader import RawSample
from pipelines.shards.source import DataConfig, SourceConfig
from pipelines.units.block_order import SingleUnits
from pipelines.units.plan import EvaluationPlan, TrainingPlan
from pipelines.units.unit_datasource import stored_blocks, unit_dataset
from pipelines.units.unit_maker import UnitMaker

SAMPLES, UNIT_SIZE, UNITS = 24, 4, 12
DATA = DataConfig(units_per_task=6, tasks=2)
INPUTS = {"image": ImageInput(height=2, width=2)}
Inputs = Mapping[str, ModalityInput]
RANDOMNESS = SampleRandomness(window=0.5, seed=0, augment=False)
LIMITS = Limits(decode_seconds=1)
REASONS = {
    "5": "the decoder ended with signal SIGSEGV",
    "9": "decoding took more than 1 s",
    "17": "the decoder ended with status 3",
}

# Ray workers cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]  # Ray does not annotate it


def shade(
    sample: RawSample,
    inputs: Inputs,  # noqa: ARG001 # the arguments of a decoder
    randomness: SampleRandomness,  # noqa: ARG001
    limits: Limits,  # noqa: ARG001
) -> Arrays:
    """Return an image of the shade that the key names."""
    return {"image": np.full((2, 2, 3), int(sample.key), np.uint8)}


def fatal(sample: RawSample, inputs: Inputs, randomness: SampleRandomness, limits: Limits) -> Arrays:
    """Crash or hang, as real decoders do on damaged files."""
    match sample.key:
        case "5":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "9":
            time.sleep(3600)
        case "17":
            os._exit(3)
    return shade(sample, inputs, randomness, limits)


def rejecting(sample: RawSample, inputs: Inputs, randomness: SampleRandomness, limits: Limits) -> Arrays:
    """Raise what the sandbox is expected to raise for `fatal`."""
    if sample.key in REASONS:
        raise SampleError(REASONS[sample.key])
    return shade(sample, inputs, randomness, limits)


@pytest.fixture
def maker(tmp_path: Path) -> UnitMaker:
    members = [(f"{number}.cls", str(number).encode()) for number in range(SAMPLES)]
    return UnitMaker(
        source=SourceConfig("shades", "x.tar", ["image"], num_classes=SAMPLES),
        inputs=INPUTS,
        index=index_of(write_tar(tmp_path / "x.tar", members)),
        plan=TrainingPlan("shades", SAMPLES, UNIT_SIZE, chunk_size=2, seed=0),
        data=DataConfig(limits=LIMITS),
    )


def batches(maker: UnitMaker, world_size: int) -> list[list[Batch]]:
    """Return the batches of each rank."""
    dataset = unit_dataset({"shades": maker}, SingleUnits("shades", 0, UNITS), DATA)
    shards = dataset.streaming_split(world_size, equal=True)

    def take(rank: int) -> list[Batch]:
        stream = UnitStream(shards[rank], torch.device("cpu"), prefetch=2)
        return [stream.take("shades", number) for number in range(rank, UNITS, world_size)]

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(take, range(world_size)))


def contents(ranks: list[list[Batch]]) -> list[tuple[Any, ...]]:
    return [
        (batch.unit, batch.keys, batch.labels.tolist(), batch.arrays["image"].tolist(), batch.quarantined)
        for rank in ranks
        for batch in rank
    ]


@pytest.mark.usefixtures("ray_cluster")
def test_a_decoder_that_crashes_or_hangs_costs_only_its_sample(maker: UnitMaker) -> None:
    found = contents(batches(replace(maker, decode=fatal), world_size=2))
    assert found == contents(batches(replace(maker, decode=rejecting), world_size=2))
    reasons = {sample.key: sample.reason for *_, quarantined in found for sample in quarantined}
    assert reasons == REASONS


@pytest.mark.usefixtures("ray_cluster")
def test_a_crash_costs_only_its_sample_in_an_evaluation_too(maker: UnitMaker) -> None:
    plan = EvaluationPlan(SAMPLES, UNIT_SIZE, lanes=UNITS)
    makers = {"shades": replace(maker, plan=plan, decode=fatal)}
    dataset = unit_dataset(makers, SingleUnits("shades", 0, UNITS), DATA)
    valid = [is_valid for block in stored_blocks(dataset, 1) for is_valid in block.unit(0)["valid"]]
    assert [number for number, is_valid in enumerate(valid) if not is_valid] == [
        5,
        9,
        17,
        *range(SAMPLES, UNITS * UNIT_SIZE),
    ]


def raising(*_: object) -> Arrays:
    raise ZeroDivisionError("not the sample's fault")


def test_the_sandbox_returns_the_decoder_s_arrays_and_survives_its_crashes() -> None:
    with sandboxed(fatal) as decode:
        for key in ("3", "5", "4", "9", "17", "17", "6"):
            sample = RawSample("x.tar", key, {})
            if key in REASONS:
                with pytest.raises(SampleError, match=REASONS[key]):
                    decode(sample, INPUTS, RANDOMNESS, LIMITS)
            else:
                assert np.array_equal(
                    decode(sample, INPUTS, RANDOMNESS, LIMITS)["image"],
                    shade(sample, INPUTS, RANDOMNESS, LIMITS)["image"],
                )


def test_a_bug_in_the_decoder_is_not_reported_as_a_bad_sample() -> None:
    with (
        sandboxed(raising) as decode,
        pytest.raises(RuntimeError, match="ZeroDivisionError: not the sample's"),
    ):
        decode(RawSample("x.tar", "1", {}), INPUTS, RANDOMNESS, LIMITS)
