"""Trained model: predictions for files, errors for invalid input, and independence from Ray, DeepSpeed and MLflow."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_model
import torch
from PIL import Image

import perceiver_dist
from perceiver_dist.errors import UserError
from perceiver_dist.inference.loose_files import predict_files
from perceiver_dist.inference.trained_model import TrainedModel


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.export(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(exported: Path) -> TrainedModel:
    return perceiver_dist.load(exported)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    (tmp_path / "photo.png").write_bytes(tiny_model.png(0))
    return tmp_path / "photo.png"


def test_an_image_gets_the_softmax_of_its_logits(model: TrainedModel, photo: Path) -> None:
    [prediction] = model.predict([photo])
    arrays = {"image": torch.from_numpy(tiny_model.pixels(0)[None, :, :, None])}
    logits = model.model(arrays, {}, "pictures")[0]
    expected = (logits.exp() / logits.exp().sum()).detach().numpy()
    assert prediction.probabilities == pytest.approx(expected, abs=1e-6)
    assert (prediction.name, prediction.modalities) == (str(photo), ("image",))


def test_top_returns_the_most_likely_classes_first(model: TrainedModel, photo: Path) -> None:
    [prediction] = model.predict([photo])
    top = prediction.top(2)
    order = np.argsort(prediction.probabilities)[::-1]
    assert [likely.label for likely in top] == [["cat", "dog", "emu"][index] for index in order[:2]]
    assert top[0].probability > top[1].probability
    assert len(prediction.top(9)) == 3


def test_predictions_do_not_depend_on_the_batch_size(model: TrainedModel, tmp_path: Path) -> None:
    files = [tmp_path / f"{seed}.png" for seed in range(5)]
    for seed, file in enumerate(files):
        file.write_bytes(tiny_model.png(seed))
    together = np.stack([one.probabilities for one in model.predict(files)])
    by_two = np.stack([one.probabilities for one in model.predict(files, batch=2)])
    assert together == pytest.approx(by_two, abs=1e-6)
    assert np.ptp(together, axis=0).max() > 1e-3


def test_multilabel_prediction_of_a_sample_with_two_files(tmp_path: Path) -> None:
    model = perceiver_dist.load(tiny_model.export(tmp_path, tiny_model.SCENES))
    (tmp_path / "a.png").write_bytes(tiny_model.png(0))
    (tmp_path / "a.wav").write_bytes(tiny_model.wav(0))
    both, image = model.predict([[tmp_path / "a.png", tmp_path / "a.wav"], tmp_path / "a.png"])
    assert (both.modalities, image.modalities) == (("image", "audio"), ("image",))
    assert abs(both.probabilities - image.probabilities).max() > 1e-3
    assert abs(both.probabilities.sum() - 1) > 1e-3  # multilabel probabilities are independent
    assert [likely.label for likely in both.top(1)] == [str(both.probabilities.argmax())]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.png", None, "gone.png: no such file"),
        ("song.xyz", b"x", "song.xyz: unsupported file type; supported are jpg, "),
        (
            "bad.png",
            b"x",
            "bad.png: image is none of JPEG, PNG, WEBP, AVIF, TIFF, GIF, BMP, or its header is damaged",
        ),
        ("cloud.npy", b"x", "no source of the model has points; it was trained on pictures (image), sounds"),
    ],
)
def test_an_invalid_file_raises_a_one_line_error(
    model: TrainedModel, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        model.predict([tmp_path / name])
    assert "\n" not in str(caught.value)


def test_a_sample_with_two_files_of_one_modality_is_rejected(model: TrainedModel, photo: Path) -> None:
    Image.new("L", (4, 4)).save(photo.with_name("other.jpg"))
    with pytest.raises(UserError, match="two files of the same modality"):
        model.predict([[photo, photo.with_name("other.jpg")]])


def test_an_ambiguous_source_must_be_set(tmp_path: Path, photo: Path) -> None:
    model = perceiver_dist.load(tiny_model.export(tmp_path, tiny_model.PICTURES, tiny_model.SCENES))
    with pytest.raises(
        UserError, match="source is not set and several match; choose one of pictures, scenes"
    ):
        model.predict([photo])
    with pytest.raises(
        UserError, match="source is 'x', which the model does not have; choose one of pictures, scenes"
    ):
        model.predict([photo], source="x")
    assert len(model.predict([photo], source="scenes")[0].probabilities) == 4


def test_each_file_is_predicted_by_the_source_with_its_modality(model: TrainedModel, photo: Path) -> None:
    sound = photo.with_name("song.wav")
    sound.write_bytes(tiny_model.wav(0))
    results = predict_files(model, [str(photo), "gone.png", str(sound)])
    assert [len(one.probabilities) for one in results.predictions] == [3, 2]
    assert results.errors == ["gone.png: no such file"]


def test_a_folder_without_a_model_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no trained model there; name a run such as runs/NAME"):
        perceiver_dist.load(tmp_path)


def test_damaged_weights_are_rejected(tmp_path: Path) -> None:
    exported = tiny_model.export(tmp_path)
    content = (exported / "weights.safetensors").read_bytes()
    (exported / "weights.safetensors").write_bytes(content[:-8])
    with pytest.raises(UserError, match="is not a complete safetensors file"):
        perceiver_dist.load(exported)


def test_weights_of_another_configuration_are_rejected(tmp_path: Path) -> None:
    exported = tiny_model.export(tmp_path)
    config = (exported / "config.yaml").read_text()
    (exported / "config.yaml").write_text(config.replace("latents: 4", "latents: 5"))
    with pytest.raises(
        UserError, match=r"'latents' has shape \(4, 16\), but its configuration expects \(5, 16\)"
    ):
        perceiver_dist.load(exported)


def test_prediction_imports_neither_ray_deepspeed_nor_mlflow(exported: Path, photo: Path) -> None:
    script = (
        "import sys, perceiver_dist\n"
        "perceiver_dist.load(sys.argv[1]).predict([sys.argv[2]])\n"
        "print([name for name in ('ray', 'deepspeed', 'mlflow', 'torchmetrics') if name in sys.modules])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, exported, photo], capture_output=True, text=True, check=True
    )
    assert run.stdout == "[]\n"
