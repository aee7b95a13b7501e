"""A decoder that ends or hangs its process, in real Ray tasks: the sample is bad, and all else is as it would be."""

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ray import cloudpickle
from tar_files import index_of, write_tar

from perceiver_dist.data.batches import Batch, UnitStream
from perceiver_dist.modalities import ImageInput
from pipelines.augment.randomness import SampleRandomness
from pipelines.decode.sample import Arrays
from pipelines.decode.sandbox import sandboxed
from pipelines.errors import SampleError
from pipelines.limits import Limits
from pipelines.shards.sample_reader import RawSample
from pipelines.shards.source import DataConfig, SourceConfig
from pipelines.units.plan import EvaluationPlan, TrainingPlan
from pipelines.units.unit_datasource import unit_dataset
from pipelines.units.unit_maker import UnitMaker

SAMPLES, UNIT_SIZE, UNITS = 24, 4, 12
DATA = DataConfig(units_per_task=6, tasks=2)
INPUTS = {"image": ImageInput(height=2, width=2)}
LIMITS = Limits(decode_seconds=1)
REASONS = {
    "5": "the decoder ended with signal SIGSEGV",
    "9": "decoding took more than 1 s",
    "17": "the decoder ended with status 3",
}

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import this file.


def shade(sample: RawSample, inputs, randomness: SampleRandomness, limits: Limits) -> Arrays:  # noqa: ARG001 # a decoder's arguments
    return {"image": np.full((2, 2, 3), int(sample.key), np.uint8)}


def fatal(sample: RawSample, inputs, randomness: SampleRandomness, limits: Limits) -> Arrays:
    """As real decoders do with damaged files: end the process, or never return."""
    match sample.key:
        case "5":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "9":
            time.sleep(3600)
        case "17":
            os._exit(3)
    return shade(sample, inputs, randomness, limits)


def refusing(sample: RawSample, inputs, randomness: SampleRandomness, limits: Limits) -> Arrays:
    """What is expected of `fatal`."""
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
    """What each rank gets."""
    shards = unit_dataset(maker, 0, UNITS, DATA).streaming_split(world_size, equal=True)

    def take(rank: int) -> list[Batch]:
        stream = UnitStream(shards[rank], "shades", torch.device("cpu"), prefetch=2)
        return [stream.take(number) for number in range(rank, UNITS, world_size)]

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(take, range(world_size)))


def facts(ranks: list[list[Batch]]) -> list:
    return [
        (batch.unit, batch.keys, batch.labels.tolist(), batch.arrays["image"].tolist(), batch.quarantined)
        for rank in ranks
        for batch in rank
    ]


@pytest.mark.usefixtures("ray_cluster")
def test_a_decoder_that_ends_its_process_costs_its_sample_only(maker):
    found = facts(batches(replace(maker, decode=fatal), world_size=2))
    assert found == facts(batches(replace(maker, decode=refusing), world_size=2))
    reasons = {sample.key: sample.reason for *_, quarantined in found for sample in quarantined}
    assert reasons == REASONS


@pytest.mark.usefixtures("ray_cluster")
def test_it_is_the_same_in_an_evaluation(maker):
    plan = EvaluationPlan(SAMPLES, UNIT_SIZE, lanes=UNITS)
    rows = unit_dataset(replace(maker, plan=plan, decode=fatal), 0, UNITS, DATA).take_all()
    unreal = [number for number, real in enumerate(real for row in rows for real in row["valid"]) if not real]
    assert unreal == [5, 9, 17, *range(SAMPLES, UNITS * UNIT_SIZE)]


def raising(*_) -> Arrays:
    raise ZeroDivisionError("no sample's fault")


def test_the_child_process_gives_what_the_decoder_gives_and_dies_with_one_sample_only():
    with sandboxed(fatal) as decode:
        for key in ("3", "5", "4", "9", "17", "17", "6"):
            sample = RawSample("x.tar", key, {})
            if key in REASONS:
                with pytest.raises(SampleError, match=REASONS[key]):
                    decode(sample, INPUTS, 0.5, LIMITS)
            else:
                assert np.array_equal(
                    decode(sample, INPUTS, 0.5, LIMITS)["image"],
                    shade(sample, INPUTS, 0.5, LIMITS)["image"],
                )


def test_an_error_of_the_code_is_not_taken_for_a_bad_sample():
    with sandboxed(raising) as decode, pytest.raises(RuntimeError, match="ZeroDivisionError: no sample's"):
        decode(RawSample("x.tar", "1", {}), INPUTS, 0.5, LIMITS)
