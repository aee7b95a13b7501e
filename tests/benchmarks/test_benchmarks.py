"""What the benchmarks measure is what they say: the same samples, whole batches, the order of each shuffle."""

from dataclasses import replace
from pathlib import Path

import pytest

from perceiver_dist.benchmarks import data_sets
from perceiver_dist.benchmarks.data_pipelines import PIPELINES
from perceiver_dist.benchmarks.data_sets import DataSet, make_data_set
from perceiver_dist.benchmarks.data_speed import measure_data
from perceiver_dist.benchmarks.model_peers import CONTENDERS, OTHER_WEIGHTS, is_possible
from perceiver_dist.benchmarks.model_settings import SETTINGS
from perceiver_dist.benchmarks.model_speed import ModelTask, measure
from perceiver_dist.benchmarks.plan_cost import SourceSize, _summaries, measure_plan
from perceiver_dist.benchmarks.result_table import ResultTable, write_section
from perceiver_dist.benchmarks.shuffle_quality import measure_shuffle
from perceiver_dist.errors import UserError
from pipelines.shards.shard_index import SourceIndex

FIGURES = ResultTable(("what", "seconds"), [("one", "1.0"), ("two", "2.0")])


def test_a_section_is_replaced_and_all_else_is_kept(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n<!-- data -->\nold\n<!-- end of data -->\n\nText.\n")
    for _ in range(2):
        write_section(str(page), "data", ["python", "jobs/benchmark.py", "data"], FIGURES)
    text = page.read_text()
    assert text.startswith("# Title\n\n<!-- data -->\n\n`python jobs/benchmark.py data`: ")
    assert text.endswith("| one | 1.0 |\n| two | 2.0 |\n\n<!-- end of data -->\n\nText.\n")
    assert "old" not in text
    with pytest.raises(UserError, match="no such file with the lines '<!-- plan -->'"):
        write_section(str(page), "plan", [], FIGURES)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DataSet]:
    """Sixteen samples of each kind but the tiny pictures, which are there."""
    folder = tmp_path_factory.mktemp("sets")
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, (inputs, batch, samples, count) in data_sets.DATA_SETS.items():
            patch.setitem(data_sets.DATA_SETS, name, (inputs, batch, samples, 16 if samples else count))
            made[name] = replace(make_data_set(name, folder), batch=4)
    return made


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("name", "pipeline"),
    [
        (name, pipeline)
        for name in data_sets.DATA_SETS
        for pipeline in PIPELINES
        if "own decoder" not in pipeline or name == "photographs"
        if not (name == "tiny" and pipeline == "ray.data")  # It fills its buffer with a whole shard first.
    ],
)
def test_every_way_gives_whole_batches_of_every_set(
    few: dict[str, DataSet], name: str, pipeline: str, tmp_path: Path
) -> None:
    assert list(PIPELINES[pipeline](few[name], 1, 6, str(tmp_path / "index"))) == [4] * 6


def test_the_sets_are_the_same_bytes_each_time() -> None:
    for name in ("photographs", "clips", "recordings"):
        _, _, samples, _ = data_sets.DATA_SETS[name]
        assert samples is not None
        assert list(samples(2)) == list(samples(2))


def test_a_made_up_index_holds_what_it_should() -> None:
    index = SourceIndex(_summaries(SourceSize(samples=1000, shards=7, ranks=1)))
    assert (index.samples, len(index.shards)) == (1000, 7)
    assert {shard.samples for shard in index.shards} <= {142, 143}


def test_the_plan_is_measured_at_two_sizes() -> None:
    rows = measure_plan(samples=10_000, shards=1000, ranks=4).rows
    assert [row[:2] for row in rows] == [["10", "1"], ["10,000", "1,000"]]


def test_chunks_of_one_are_mixed_as_well_as_chance_does_and_a_small_buffer_is_not() -> None:
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


def test_a_library_is_not_asked_for_a_model_that_it_has_not() -> None:
    assert not is_possible("transformers", SETTINGS["imagenet"])
    assert not is_possible("perceiver-io", SETTINGS["imagenet_1cross"])


def test_a_set_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="--sets must be some of photographs, clips, recordings, tiny"):
        measure_data(sets=["movies"])
