"""Conversion of model folders from and to `transformers` keeps the outputs."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file

from perceiver_dist.config.command_line import read_run
from perceiver_dist.errors import UserError
from perceiver_dist.model.perceiver import Perceiver

transformers = pytest.importorskip("transformers", reason="run by `make test-transformers`")
PerceiverConfig = transformers.PerceiverConfig
PerceiverForImageClassificationFourier = transformers.PerceiverForImageClassificationFourier
processing = importlib.import_module("transformers.models.perceiver.image_processing_pil_perceiver")
PerceiverImageProcessorPil = processing.PerceiverImageProcessorPil

ROOT = Path(__file__).parents[2]
Main = Callable[[Sequence[str]], int]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Main:
    """Main function of `jobs/convert_checkpoint.py`."""
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("jobs.convert_checkpoint").main


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"num_latents": 4, "d_latents": 16, "num_blocks": 2, "num_self_attends_per_block": 1}
    heads = {"num_self_attention_heads": 2, "num_cross_attention_heads": 1}
    folder = tmp_path_factory.mktemp("published")
    config = PerceiverConfig(num_labels=3, d_model=261, initializer_range=0.3, **sizes, **heads)
    PerceiverForImageClassificationFourier(config).save_pretrained(folder)
    return folder


def test_a_converted_folder_computes_the_same_in_both_directions(
    main: Main, published: Path, tmp_path: Path
) -> None:
    ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
    assert main(["from_transformers", "--folder", str(published), "--out", ours]) == 0
    assert main(["to_transformers", "--folder", ours, "--out", theirs]) == 0
    config = read_run((tmp_path / "ours" / "config.yaml").read_text())
    model = Perceiver(config.model, config.heads)
    model.load_state_dict(load_file(tmp_path / "ours" / "weights.safetensors"))
    pixels = numpy.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=numpy.uint8)
    for folder in (published, theirs):
        library = PerceiverForImageClassificationFourier.from_pretrained(folder).eval()
        processor = PerceiverImageProcessorPil.from_pretrained(theirs)
        inputs = processor(list(pixels.transpose(0, 3, 1, 2)), return_tensors="pt").pixel_values
        with torch.no_grad():
            expected, logits = (
                library(inputs).logits,
                model({"image": torch.from_numpy(pixels)}, {}, "imagenet"),
            )
        assert expected.std() > 0.1
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_errors_name_the_file_that_cannot_be_read(main: Main, published: Path, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text("no json")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        main(["from_transformers", "--folder", str(tmp_path / "text"), "--out", str(tmp_path)])
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        main(["from_transformers", "--folder", str(tmp_path), "--out", str(tmp_path)])
    (tmp_path / "config.json").write_bytes((published / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((published / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"model\.safetensors is not a valid safetensors file"):
        main(["from_transformers", "--folder", str(tmp_path), "--out", str(tmp_path)])
    with pytest.raises(UserError, match=r"required: from_transformers\.out"):
        main(["from_transformers", "--folder", str(published)])


def test_the_job_does_not_import_transformers() -> None:
    code = "import sys, jobs.convert_checkpoint; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
