"""Export to a folder: same predictions as the checkpoint, a model card, and atomic output."""

import json
from pathlib import Path

import models_to_export as models
import numpy as np
import pytest
from models_to_export import Export, probabilities

import perceiver_dist
from perceiver_dist.checkpoint.stored_model import find_model
from perceiver_dist.errors import UserError
from perceiver_dist.export.training_facts import TrainingFacts, training_facts
from perceiver_dist.model.cost import forward_flops, parameter_count


@pytest.fixture
def folder(run: Path, export: Export, tmp_path: Path) -> Path:
    export(["folder", "--model", run, "--out", tmp_path / "shared" / "first", "--licence", "apache-2.0"])
    return tmp_path / "shared" / "first"


def test_predictions_of_the_folder_equal_those_of_the_checkpoint(
    folder: Path, samples: list[list[Path]], expected: np.ndarray
) -> None:
    loaded = perceiver_dist.load(folder)
    np.testing.assert_array_equal(probabilities(loaded.predict(samples, "both")), expected)
    assert expected.std() > 0.01
    assert loaded.stored.mlflow_run_id == models.RUN_ID
    assert loaded.config == models.CONFIG


def test_predictions_of_an_exported_training_equal_those_of_the_run(
    export: Export, samples: list[list[Path]], tmp_path: Path
) -> None:
    run = models.train(tmp_path)
    export(["folder", "--model", run, "--out", tmp_path / "out"])
    of_run, of_folder = (
        perceiver_dist.load(path).predict(samples, "both") for path in (run, tmp_path / "out")
    )
    np.testing.assert_array_equal(probabilities(of_folder), probabilities(of_run))


def test_class_names_are_exported_and_no_temporary_files_are_left(folder: Path) -> None:
    names = json.loads((folder / "classes.json").read_text())
    assert names == {"pictures": ["circle", "square", "star"], "both": ["0", "1", "2", "3", "4"]}
    assert [path.name for path in folder.parent.iterdir()] == ["first"]


def test_exporting_an_exported_folder_gives_the_same_files(
    folder: Path, export: Export, tmp_path: Path
) -> None:
    export(["folder", "--model", folder, "--out", tmp_path / "again", "--licence", "apache-2.0"])
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_the_model_card_describes_the_model(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    model, heads = models.CONFIG.model, models.CONFIG.heads
    for text in (
        "license: apache-2.0",
        "# first",
        f"| steps | {models.STEPS} of {models.CONFIG.train.steps} |",
        "| samples | 512 |",
        "| pictures/accuracy | 0.875 |",
        f"| parameters | {parameter_count(model, heads):,} |",
        f"40 tokens, {forward_flops(model, ['image', 'audio']):.3g} FLOPs",
        r"| both | multilabel | 5 | image, audio | `none` | `held-out\|whole.tar` |",
    ):
        assert text in card


def test_the_code_in_the_model_card_runs(folder: Path, samples: list[list[Path]]) -> None:
    lines = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert lines.count("\n") == 3
    exec(lines.replace("FOLDER", str(folder)).replace("photo.jpg", str(samples[0][0])))  # noqa: S102


def test_metrics_apply_only_to_the_step_of_their_evaluation(tmp_path: Path) -> None:
    run = models.write_run(tmp_path / "first")
    stored = find_model(str(run))
    assert training_facts(stored) == TrainingFacts(models.STEPS, models.SAMPLES, models.METRICS)
    models.write_result(run, models.STEPS + 4)
    assert training_facts(stored) == TrainingFacts(models.STEPS, models.SAMPLES, {})


def test_weights_of_unknown_training_get_a_model_card(export: Export, tmp_path: Path) -> None:
    model = models.write_exported(tmp_path / "random", models.all_modalities())
    export(["folder", "--model", model, "--out", tmp_path / "shared"])
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "# random" in card
    assert "Not recorded" in card
    assert "Not stated" in card
    assert not (tmp_path / "shared" / "training.json").exists()


def test_export_overwrites_nothing_and_leaves_nothing_incomplete(
    run: Path, export: Export, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    for existing in ("full", "full/file"):
        with pytest.raises(UserError, match="which already exists; choose a new folder"):
            export(["folder", "--model", run, "--out", tmp_path / existing])
    damaged = models.write_exported(tmp_path / "damaged", models.CONFIG)
    (damaged / "weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="not a complete safetensors file"):
        export(["folder", "--model", damaged, "--out", tmp_path / "out"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "full"]


def test_an_object_store_gets_the_weights_last(run: Path, export: Export, tmp_path: Path) -> None:
    export(["folder", "--model", run, "--out", f"local://{tmp_path}/store/first"])
    written = sorted((tmp_path / "store" / "first").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert len(written) == 6
    assert written[-1].name == "weights.safetensors"
