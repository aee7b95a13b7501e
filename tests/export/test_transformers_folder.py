"""A published model folder becomes one of ours by one command, and back; both compute the same."""

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
    """The job's main function."""
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


def test_a_published_folder_is_loaded_as_a_run_is_and_goes_back(main: Main, published: Path, tmp_path: Path):
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


def test_what_cannot_be_read_is_named(main: Main, published: Path, tmp_path: Path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text("no json")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        main(["from_transformers", "--folder", str(tmp_path / "text"), "--out", str(tmp_path)])
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        main(["from_transformers", "--folder", str(tmp_path), "--out", str(tmp_path)])
    (tmp_path / "config.json").write_bytes((published / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((published / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"model\.safetensors is no whole safetensors file"):
        main(["from_transformers", "--folder", str(tmp_path), "--out", str(tmp_path)])
    with pytest.raises(UserError, match=r"required: from_transformers\.out"):
        main(["from_transformers", "--folder", str(published)])


def test_the_job_s_modules_do_not_need_the_library():
    code = "import sys, jobs.convert_checkpoint; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
