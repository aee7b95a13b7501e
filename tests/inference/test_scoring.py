"""Units scored over the cluster: every sample once, in order, whatever crew works, with what is known of it."""

from pathlib import Path

import numpy as np
import pytest
import tiny_model
import torch

import perceiver_dist
from perceiver_dist.inference.crew import Crew
from perceiver_dist.inference.prediction_table import prediction_table
from perceiver_dist.inference.scoring import ScoredUnit, Scorers, Work
from perceiver_dist.inference.trained_model import TrainedModel
from pipelines.chance import evaluation_chance
from pipelines.index import SourceIndex, index_shard
from pipelines.reader import read_samples
from pipelines.sample import decode_sample
from pipelines.write import Sample, write_shards

pytestmark = pytest.mark.usefixtures("ray_cluster")
SAMPLES = 30
TWO_OF_EACH = Crew("cpu", actors=2, readers=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return perceiver_dist.load(tiny_model.export(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def scorers(model: TrainedModel, request: pytest.FixtureRequest) -> Scorers:
    request.getfixturevalue("ray_cluster")
    return Scorers(model, TWO_OF_EACH)


def index_of(folder: Path, samples: list[Sample]) -> SourceIndex:
    shards = write_shards(samples, folder, "some", samples_per_shard=7)
    return SourceIndex([index_shard(str(shard), str(folder / "index")) for shard in shards])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> SourceIndex:
    samples: list[Sample] = [
        {"__key__": f"{n:02d}", "png": tiny_model.png(n), "cls": n % 3} for n in range(SAMPLES)
    ]
    return index_of(tmp_path_factory.mktemp("pictures"), samples)


def work(index: SourceIndex, **wanted: object) -> Work:
    return Work(tiny_model.PICTURES, index, batch=4, subsets=[("image",)], **wanted)  # type: ignore[arg-type]


def keys(units: list[ScoredUnit]) -> list[str]:
    return [place.key for unit in units for place in unit.places]


def test_every_sample_is_scored_once_and_in_order(
    model: TrainedModel, scorers: Scorers, pictures: SourceIndex
) -> None:
    units = list(scorers.score(work(pictures, embeddings=True)))
    assert keys(units) == [f"{n:02d}" for n in range(SAMPLES)]
    assert [unit.places[0].shard.rpartition("/")[2] for unit in units[:3]] == ["some-000000.tar"] * 2 + [
        "some-000001.tar"
    ]
    assert [int(unit.real.sum()) for unit in units] == [4] * 7 + [2]
    assert torch.cat([unit.labels for unit in units])[:SAMPLES].tolist() == [n % 3 for n in range(SAMPLES)]
    arrays = {"image": torch.from_numpy(np.stack([tiny_model.pixels(n) for n in range(SAMPLES)])[..., None])}
    with torch.no_grad():
        logits, latents = model.model.logits_and_latents(arrays, {}, "pictures")
    found = torch.cat([unit.logits["image",] for unit in units])[:SAMPLES]
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-5)
    embeddings = torch.cat([unit.embeddings for unit in units if unit.embeddings is not None])[:SAMPLES]
    torch.testing.assert_close(embeddings, latents.mean(1), atol=1e-5, rtol=1e-5)


def test_the_stream_begins_at_any_unit_and_is_read_outside_of_the_actors(
    scorers: Scorers, pictures: SourceIndex
) -> None:
    # As many readers as actors, so that nothing else would keep Ray from making one of the two.
    dataset = scorers.dataset(work(pictures), first=6).materialize()
    assert [row["unit"].tolist() for row in dataset.take_all()] == [[6], [7]]
    assert "ReadUnit:" in dataset.stats()
    assert "MapBatches(_Scorer):" in dataset.stats()


def test_bad_samples_and_empty_ones_say_why(scorers: Scorers, tmp_path: Path) -> None:
    samples: list[Sample] = [
        {"__key__": "no_label", "png": tiny_model.png(0)},
        {"__key__": "broken", "png": b"x"},
        {"__key__": "silent", "wav": tiny_model.wav(0)},
    ]
    [unit] = scorers.score(work(index_of(tmp_path, samples), labelled=False, embeddings=True))
    rows = prediction_table(unit, tiny_model.PICTURES, top=2).to_pylist()
    assert [row["key"] for row in rows] == ["no_label", "broken", "silent"]
    assert [row["error"] for row in rows] == [
        None,
        "image is neither JPEG, PNG nor WebP, or its header is damaged",
        "holds nothing that source 'pictures' sees (image)",
    ]
    assert (len(rows[0]["labels"]), rows[0]["modalities"], len(rows[0]["embedding"])) == (2, ["image"], 16)
    nothing = {
        name: rows[1][name] for name in ("labels", "classes", "probabilities", "modalities", "embedding")
    }
    assert set(nothing.values()) == {None}


def test_views_are_windows_from_the_first_to_the_last(
    model: TrainedModel, scorers: Scorers, tmp_path: Path
) -> None:
    samples: list[Sample] = [
        {"__key__": f"{n}", "wav": tiny_model.wav(n, 3 * tiny_model.SOUND_SAMPLES), "cls": 1}
        for n in range(5)
    ]
    index = index_of(tmp_path, samples)
    sounds = Work(tiny_model.SOUNDS, index, batch=2, subsets=[("audio",)], views=3)
    units = list(scorers.score(sounds))
    assert keys(units) == ["0", "1", "2", "3", "4"]
    looks = []
    for window in (0.0, 0.5, 1.0):
        decoded = [
            decode_sample(
                raw,
                model.inputs(tiny_model.SOUNDS),
                evaluation_chance(raw.key, window),
                model.config.data.limits,
            )
            for raw in read_samples(index, range(5), frozenset({"wav"}))
        ]
        looks.append(model.probabilities(*model.stack(decoded, tiny_model.SOUNDS), tiny_model.SOUNDS))
    assert np.ptp(looks, axis=0).max() > 1e-3
    found = torch.cat([unit.logits["audio",][: len(unit.places)] for unit in units]).softmax(1)
    assert found.numpy() == pytest.approx(np.mean(looks, axis=0), abs=1e-5)
