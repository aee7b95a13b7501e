"""Benchmarks: data sets, batches, shuffle metrics, equal logits of contenders, and the page of results."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from perceiver_dist.benchmarks import kernel_speed
from perceiver_dist.benchmarks.data import data_sets
from perceiver_dist.benchmarks.data.data_sets import DataSet
from perceiver_dist.benchmarks.data.pipelines import PIPELINES
from perceiver_dist.benchmarks.data.speed import measure_data
from perceiver_dist.benchmarks.kernel_speed import measure_kernels
from perceiver_dist.benchmarks.model_peers import (
    CONTENDERS,
    GPU_CONTENDERS,
    OTHER_LIBRARIES,
    OTHER_WEIGHTS,
    is_possible,
)
from perceiver_dist.benchmarks.model_settings import SETTINGS
from perceiver_dist.benchmarks.model_speed import measure_gpu, measure_model
from perceiver_dist.benchmarks.model_steps import ModelTask, measure, measure_steps
from perceiver_dist.benchmarks.plan_cost import SourceSize, _summaries, measure_plan
from perceiver_dist.benchmarks.result_table import ResultTable, write_section
from perceiver_dist.benchmarks.shuffle_quality import measure_shuffle
from perceiver_dist.errors import UserError
from perceiver_dist.preflight.gpus import MeasuredThroughput
from pipelines.shards.shard_index import SourceIndex

FIGURES = ResultTable(("what", "seconds"), [("one", "1.0"), ("two", "2.0")])


def test_only_the_named_section_of_a_page_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n<!-- data -->\nold\n<!-- end of data -->\n\nText.\n")
    for _ in range(2):
        write_section(str(page), "data", ["python", "jobs/benchmark.py", "data"], FIGURES)
    text = page.read_text()
    assert text.startswith("# Title\n\n<!-- data -->\n\n`python jobs/benchmark.py data`: ")
    assert text.endswith("| one | 1.0 |\n| two | 2.0 |\n\n<!-- end of data -->\n\nText.\n")
    assert "old" not in text
    write_section(str(page), "data", [], replace(FIGURES, notes=["one is not installed"]))
    assert "| two | 2.0 |\n\none is not installed\n\n<!-- end" in page.read_text()
    with pytest.raises(UserError, match="the file does not exist, or lacks the lines '<!-- plan -->'"):
        write_section(str(page), "plan", [], FIGURES)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("name", "pipeline"),
    [
        (name, pipeline)
        for name in data_sets.DATA_SETS
        for pipeline in PIPELINES
        if "own decoder" not in pipeline or name == "photographs"
        if not (
            name == "tiny" and pipeline == "ray.data"
        )  # Its shuffle buffer would first decode a whole shard.
    ],
)
def test_every_pipeline_yields_full_batches_of_every_set(
    small_sets: dict[str, DataSet], name: str, pipeline: str, tmp_path: Path
) -> None:
    assert list(PIPELINES[pipeline](small_sets[name], 1, 6, str(tmp_path / "index"))) == [4] * 6


def test_data_sets_are_deterministic() -> None:
    for name in ("photographs", "clips", "recordings"):
        _, _, samples, _ = data_sets.DATA_SETS[name]
        assert samples is not None
        assert list(samples(2)) == list(samples(2))


def test_a_synthetic_index_has_the_requested_size() -> None:
    index = SourceIndex(_summaries(SourceSize(samples=1000, shards=7, ranks=1)))
    assert (index.samples, len(index.shards)) == (1000, 7)
    assert {shard.samples for shard in index.shards} <= {142, 143}


def test_the_plan_is_measured_at_two_sizes() -> None:
    rows = measure_plan(samples=10_000, shards=1000, ranks=4).rows
    assert [row[:2] for row in rows] == [["10", "1"], ["10,000", "1,000"]]


def test_chunks_of_one_mix_like_a_uniform_shuffle_and_a_small_buffer_does_not() -> None:
    rows = {row[0]: row for row in measure_shuffle(samples=20_000, shards=20, classes=20, batch=100).rows}
    assert abs(float(rows["perceiver-dist, data.chunk_size 1"][-1]) - 1) < 0.05
    assert float(rows["webdataset, buffer of 1,000"][-1]) > 2
    assert float(rows["perceiver-dist, data.chunk_size 16"][-1]) > 2


def test_contenders_with_the_same_weights_give_the_same_logits() -> None:
    ours = [name for name in CONTENDERS if is_possible(name, SETTINGS["small"]) and name not in OTHER_WEIGHTS]
    found = [measure(ModelTask(name, "small", 1, "fp32", "cpu")) for name in ours if "compiled" not in name]
    assert len({speed.parameters for speed in found}) == 1
    for speed in found[1:]:
        assert speed.logits == pytest.approx(found[0].logits, abs=1e-4)


def test_a_gpu_is_measured_in_one_table_per_setting_and_printed_as_measured_throughput() -> None:
    [(section, table)] = measure_gpu(seconds=0.01, minutes=60, device="cpu")
    assert section == "gpu_small_bf16"
    possible = [name for name in GPU_CONTENDERS if is_possible(name, SETTINGS["small"])]
    assert [row[:2] for row in table.rows] == [[name, batch] for batch in ("1", "2") for name in possible]
    assert {len(row) for row in table.rows} == {len(table.columns)}
    ours = [row for row in table.rows if row[0] not in OTHER_LIBRARIES]
    rows = [MeasuredThroughput(**entry) for line in table.notes[2:] for entry in yaml.safe_load(line)]
    assert [(row.way, row.micro_batch) for row in rows] == [(row[0], int(row[1])) for row in ours]
    # Samples per second, to their four digits in one and one decimal in the other.
    for measured, row in zip(rows, ours, strict=True):
        assert measured.samples_per_second == pytest.approx(float(row[2]), rel=1e-3, abs=0.06)


def test_no_row_is_begun_after_the_time_is_spent() -> None:
    [(_, table)] = measure_gpu(minutes=0, device="cpu")
    assert {row[2] for row in table.rows} == {"no time left"}
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_out_of_memory_is_a_row_and_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    # A CPU cannot be made to raise it.
    monkeypatch.setattr(torch.optim.AdamW, "step", fails)
    assert measure_steps(ModelTask("dense", "small", 1, "fp32", "cpu"), 0.01) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_a_missing_gpu_is_reported() -> None:
    with pytest.raises(UserError, match="no GPU here"):
        list(measure_gpu())


@pytest.mark.parametrize("options", [{"batch": "4,x"}, {"batch": "0"}, {"batch": ""}, {"setting": "large"}])
def test_unknown_sizes_and_settings_are_rejected(options: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"must be one of imagenet.*numbers from 1 on"):
        measure_model(**options)  # type: ignore[arg-type] # mypy widens the keys
    with pytest.raises(UserError, match="give one number"):
        measure_model(setting="small", batch="1,2")


def test_libraries_are_skipped_for_models_that_they_do_not_support() -> None:
    assert not is_possible("transformers", SETTINGS["imagenet"])
    assert not is_possible("perceiver-io", SETTINGS["imagenet_1cross"])


def test_an_unknown_data_set_is_rejected() -> None:
    with pytest.raises(
        UserError, match=r"--sets \['movies'\].*must be some of photographs, clips, recordings, tiny"
    ):
        measure_data(sets=["movies"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_kernels_are_measured_on_a_gpu_only() -> None:
    with pytest.raises(UserError, match="found no NVIDIA GPU of compute capability"):
        measure_kernels()
    with pytest.raises(UserError, match="--batch 0, --repeats 20"):
        measure_kernels(batch=0)


def test_errors_of_attention_are_relative_to_fp64() -> None:
    case = kernel_speed._case("small", 1, "cpu")
    errors = kernel_speed._errors(case, kernel_speed._PLAIN)
    assert len(errors) == 4 + 3  # the results, and the gradients of the query and of the scores of two axes
    assert all(1e-8 < error < 1e-5 for error in errors)


def test_the_floor_of_the_imagenet_setting() -> None:
    """8 to 10 microseconds each way, from 25.7 million scores, on the 132 multiprocessors of an H200 at 1.98 GHz."""
    cycles = [one.cycles(channels=5) for one in kernel_speed._PASSES]
    seconds = [512 * 224 * 224 * one / (132 * 1.98e9) for one in cycles]
    assert 7e-6 < seconds[0] < seconds[1] < 10e-6
