"""Attention figures of every modality are drawn, and say what the label and the answer are."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perceiver_dist.inference.attention_figure import attention_figure
from perceiver_dist.modalities import AudioInput, ImageInput, ModalityInput, PointCloudInput, VideoInput

INPUTS: dict[str, ModalityInput] = {
    "image": ImageInput(height=8, width=6, channels=1, patch=2),
    "audio": AudioInput(samples=512, segment=64),
    "video": VideoInput(frames=6, height=8, width=8, patch=(2, 4, 4)),
    "points": PointCloudInput(points=20),
}
MEL = AudioInput(samples=512, segment=64, mel_bands=4)
RANDOM = np.random.default_rng(0)


def arrays(inputs: dict[str, ModalityInput]) -> dict[str, np.ndarray]:
    return {
        name: RANDOM.integers(0, 99, spec.array_shape).astype(spec.array_dtype)
        for name, spec in inputs.items()
    }


@pytest.mark.parametrize("audio", [INPUTS["audio"], MEL])
@pytest.mark.parametrize("cross_attends", [1, 2, 8])
@pytest.mark.parametrize("latents", [1, 5])
def test_all_modalities_are_drawn(
    tmp_path: Path, audio: AudioInput, cross_attends: int, latents: int
) -> None:
    inputs = {**INPUTS, "audio": audio}
    maps = [
        {name: RANDOM.uniform(size=(latents, *spec.grid)) for name, spec in inputs.items()}
        for _ in range(cross_attends)
    ]
    attention_figure(arrays(inputs), inputs, maps, "a title", tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.width > picture.height / 4
        assert np.asarray(picture).std() > 10
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
