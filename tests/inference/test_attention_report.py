"""Attention figures: samples of every modality are drawn to one PNG."""

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
SPECTROGRAM = AudioInput(samples=512, segment=64, mel_bands=4)
RANDOM = np.random.default_rng(0)


def random_arrays(inputs: dict[str, ModalityInput]) -> dict[str, np.ndarray]:
    return {
        name: RANDOM.integers(0, 99, spec.array_shape).astype(spec.array_dtype)
        for name, spec in inputs.items()
    }


@pytest.mark.parametrize("audio", [INPUTS["audio"], SPECTROGRAM])
@pytest.mark.parametrize("cross_attends", [1, 2, 8])
@pytest.mark.parametrize("latents", [1, 5])
def test_attention_figure_draws_all_modalities(
    tmp_path: Path, audio: AudioInput, cross_attends: int, latents: int
) -> None:
    inputs = {**INPUTS, "audio": audio}
    maps = [
        {name: RANDOM.uniform(size=(latents, *spec.grid)) for name, spec in inputs.items()}
        for _ in range(cross_attends)
    ]
    attention_figure(random_arrays(inputs), inputs, maps, "a title", tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width > figure.height / 4
        assert np.asarray(figure).std() > 10  # not blank
    # No temporary file is left.
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
