"""Distributed scoring: a pool of actors scores every sample exactly once, in order."""

from pathlib import Path

import numpy as np
import pytest
import tiny_model
import torch

import perceiver_dist
from perceiver_dist.inference.prediction_table import prediction_table
from perceiver_dist.inference.scoring import DistributedScorer, ScoredUnit, ScoringTask
from perceiver_dist.inference.scoring_pool import ScoringPool
from perceiver_dist.inference.trained_model import TrainedModel
from pipelines.augment.randomness import evaluation_randomness
from pipelines.decode.sample import decode_sample
from pipelines.shards.sample_reader import read_samples
from pipelines.shards.shard_index import SourceIndex, index_shard
from pipelines.shards.shard_writer import Sample, write_shards

pytestmark = pytest.mark.usefixtures("ray_cluster")
SAMPLES = 30
POOL = ScoringPool("cpu", actors=2, readers=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return perceiver_dist.load(tiny_model.export(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def scorer(model: TrainedModel, ray_cluster: None) -> DistributedScorer:  # noqa: ARG001
    return DistributedScorer(model, POOL)


def write_index(folder: Path, samples: list[Sample]) -> SourceIndex:
    shards = write_shards(samples, folder, "some", samples_per_shard=7)
    return SourceIndex([index_shard(str(shard), str(folder / "index")) for shard in shards])


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> ScoringTask:
    """Task with unlabelled images, then a damaged image and a sample without an image."""
    images: list[Sample] = [{"__key__": f"{n:02d}", "png": tiny_model.png(n)} for n in range(SAMPLES)]
    samples: list[Sample] = [
        *images,
        {"__key__": "broken", "png": b"x"},
        {"__key__": "silent", "wav": tiny_model.wav(0)},
    ]
    index = write_index(tmp_path_factory.mktemp("pictures"), samples)
    return ScoringTask(tiny_model.PICTURES, index, 4, [("image",)], labelled=False, embeddings=True)


@pytest.fixture(scope="module")
def units(scorer: DistributedScorer, task: ScoringTask) -> list[ScoredUnit]:
    return list(scorer.score(task, first=1))


def keys(units: list[ScoredUnit]) -> list[str]:
    return [location.key for unit in units for location in unit.locations]


def test_every_sample_is_scored_exactly_once_and_in_order(
    model: TrainedModel, units: list[ScoredUnit]
) -> None:
    assert keys(units) == [*(f"{n:02d}" for n in range(4, SAMPLES)), "broken", "silent"]
    shards = [unit.locations[0].shard.rpartition("/")[2] for unit in units[:2]]
    assert shards == ["some-000000.tar", "some-000001.tar"]
    pixels = np.stack([tiny_model.pixels(n) for n in range(4, SAMPLES)])[..., None]
    with torch.no_grad():
        logits, latents = model.model.logits_and_latents({"image": torch.from_numpy(pixels)}, {}, "pictures")
    found = torch.cat([unit.logits["image",] for unit in units])[: len(logits)]
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-5)
    embeddings = torch.cat([unit.embeddings for unit in units if unit.embeddings is not None])[: len(logits)]
    torch.testing.assert_close(embeddings, latents.mean(1), atol=1e-5, rtol=1e-5)


def test_samples_that_cannot_be_used_get_an_error(units: list[ScoredUnit]) -> None:
    rows = prediction_table(units[-1], tiny_model.PICTURES, top=2).to_pylist()
    assert [row["error"] for row in rows] == [
        None,
        None,
        "image is none of JPEG, PNG, WEBP, AVIF, TIFF, GIF, BMP, or its header is damaged",
        "has none of the modalities of source 'pictures' (image)",
    ]
    assert (len(rows[0]["labels"]), rows[0]["modalities"], len(rows[0]["embedding"])) == (2, ["image"], 16)
    values = {
        name: rows[2][name] for name in ("labels", "classes", "probabilities", "modalities", "embedding")
    }
    assert set(values.values()) == {None}


def test_ray_data_does_not_fuse_reading_with_scoring(
    scorer: DistributedScorer, task: ScoringTask, capsys: pytest.CaptureFixture[str]
) -> None:
    # The pool has as many readers as actors, so that a difference in numbers is not what prevents the fusion.
    scorer.dataset(task).explain()  # type: ignore[no-untyped-call]  # Ray does not annotate it
    plan = capsys.readouterr().out.rpartition("Optimized")[2]
    assert "ActorPoolMapOperator[MapBatches(_Scorer)]" in plan
    assert "TaskPoolMapOperator[ReadUnit]" in plan


def test_views_average_windows_from_start_to_end(
    model: TrainedModel, scorer: DistributedScorer, tmp_path: Path
) -> None:
    samples: list[Sample] = [
        {"__key__": f"{n}", "wav": tiny_model.wav(n, 3 * tiny_model.SOUND_SAMPLES), "cls": 1}
        for n in range(5)
    ]
    index = write_index(tmp_path, samples)
    sounds = ScoringTask(tiny_model.SOUNDS, index, batch=2, subsets=[("audio",)], views=3)
    units = list(scorer.score(sounds))
    assert keys(units) == ["0", "1", "2", "3", "4"]
    by_window = []
    for window in (0.0, 0.5, 1.0):
        decoded = [
            decode_sample(
                raw,
                model.inputs(tiny_model.SOUNDS),
                evaluation_randomness(raw.key, window),
                model.config.data.limits,
            )
            for raw in read_samples(index, range(5), frozenset({"wav"}))
        ]
        by_window.append(model.probabilities(*model.stack(decoded, tiny_model.SOUNDS), tiny_model.SOUNDS))
    assert np.ptp(by_window, axis=0).max() > 1e-3  # the windows differ
    found = torch.cat([unit.logits["audio",][: len(unit.locations)] for unit in units]).softmax(1)
    assert found.numpy() == pytest.approx(np.mean(by_window, axis=0), abs=1e-5)
