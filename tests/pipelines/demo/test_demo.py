"""Tests of the demo data: the shards in the repository, and the rendered clips."""

import json
import tarfile
from itertools import starmap
from pathlib import Path

import numpy as np
import pytest
import webdataset

import pipelines.demo
from perceiver_dist.modalities import AudioInput, ImageInput, VideoInput
from pipelines.decode import decode_image, decode_video
from pipelines.demo.synthetic_clips import (
    CLASS_NAMES,
    FIRST_EVALUATION_CLIP,
    PITCHES,
    SAMPLE_RATE,
    draw_frames,
    draw_sound,
    plan_shards,
    render_clip,
    write_synthetic_clips,
)

FASHION_MNIST = Path(pipelines.demo.__file__).parent / "fashion_mnist"


@pytest.mark.parametrize(("shard", "per_class"), [("train-000000.tar", 800), ("eval-000000.tar", 100)])
def test_fashion_mnist_is_balanced_and_shuffled(shard: str, per_class: int) -> None:
    with tarfile.open(FASHION_MNIST / shard) as tar:
        files = [tar.extractfile(member) for member in tar if member.name.endswith(".cls")]
        labels = [int(file.read()) for file in files if file is not None]
    assert np.bincount(labels).tolist() == [per_class] * 10
    assert len(set(labels[:50])) == 10


def test_fashion_mnist_images_are_28_by_28_and_grayscale() -> None:
    dataset = webdataset.WebDataset(str(FASHION_MNIST / "eval-000000.tar"), shardshuffle=False)
    sample = next(iter(dataset))
    image = decode_image(sample["png"], ImageInput(channels=1))
    assert image.shape == (28, 28, 1)
    assert image.std() > 10
    assert len(json.loads((FASHION_MNIST / "classes.json").read_text())) == 10


def test_a_clip_is_deterministic_given_label_and_generator() -> None:
    clips = {
        render_clip(label, np.random.default_rng(seed))
        for label in (0, 1)
        for seed in (0, 1)
        for _ in range(6)
    }
    assert len(clips) == 4


def test_a_clip_fills_the_default_window_at_any_position() -> None:
    clip = render_clip(0, np.random.default_rng(0))
    for position in (0.0, 0.5, 1.0):
        frames, sound = decode_video(clip, VideoInput(), AudioInput(), position)
        assert frames is not None
        assert sound is not None
        assert (frames[1:] != frames[:-1]).any(axis=(1, 2, 3)).all()
        assert np.abs(sound[-200:].astype(int)).max() > 300


def spread(seen: int, seed: int) -> np.ndarray:
    """Return how far the lit area moves over time, along rows and along columns, in pixels."""
    lit = draw_frames(seen, np.random.default_rng(seed)).max(axis=-1) > 128
    rows, columns = lit.any(axis=2), lit.any(axis=1)
    return np.array([axis.any(axis=0).sum() - axis.sum(axis=1).max() for axis in (rows, columns)])


@pytest.mark.parametrize(("seen", "moves"), [(0, (False, True)), (1, (True, False)), (2, (False, False))])
def test_the_shape_moves_according_to_its_class(seen: int, moves: tuple[bool, bool]) -> None:
    for seed in range(20):
        np.testing.assert_array_equal(spread(seen, seed) > 5, moves)


def test_a_single_frame_does_not_reveal_the_motion() -> None:
    lit = [
        [draw_frames(seen, np.random.default_rng((seen, i)))[9].max(axis=-1) > 128 for i in range(600)]
        for seen in range(3)
    ]
    area = np.sum(lit, axis=(2, 3))
    np.testing.assert_allclose(area.mean(axis=1), area.mean(), rtol=0.08)
    np.testing.assert_allclose(area.std(axis=1), area.std(), rtol=0.12)
    np.testing.assert_allclose(np.mean(lit, axis=1).mean(axis=2), np.mean(lit), rtol=0.3)


@pytest.mark.parametrize("heard", range(3))
def test_the_loudest_frequency_is_the_pitch_of_the_class(heard: int) -> None:
    for seed in range(20):
        sound = draw_sound(heard, np.random.default_rng(seed)).astype(float)
        loudest = np.argmax(np.abs(np.fft.rfft(sound))) * SAMPLE_RATE / len(sound)
        assert abs(np.log2(loudest / PITCHES[heard])) < 0.27


def test_rendered_shards_are_balanced_and_deterministic(tmp_path: Path) -> None:
    write_synthetic_clips(tmp_path / "a", train=18, evaluation=9)
    write_synthetic_clips(tmp_path / "b", train=18, evaluation=9, starmap=starmap)
    for name, count in (("train-000000.tar", 18), ("eval-000000.tar", 9)):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        read = list(webdataset.WebDataset(str(tmp_path / "a" / name), shardshuffle=False))
        assert np.bincount([int(each["cls"]) for each in read]).tolist() == [count // 9] * len(CLASS_NAMES)


def test_training_and_evaluation_never_share_a_clip() -> None:
    shards = plan_shards(Path("clips"), train=2400, evaluation=450, seed=0)
    assert sum(count for _, _, count, _ in shards) == 2850
    numbers = [
        (path.name, number) for path, first, count, _ in shards for number in range(first, first + count)
    ]
    assert len({number for _, number in numbers}) == 2850
    assert all((number >= FIRST_EVALUATION_CLIP) == name.startswith("eval") for name, number in numbers)
