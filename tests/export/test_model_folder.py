"""A checkpoint becomes a folder that says everything of the model, and is read as the run is."""

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


def test_an_exported_folder_predicts_what_the_checkpoint_does(
    folder: Path, samples: list[list[Path]], expected: np.ndarray
) -> None:
    loaded = perceiver_dist.load(folder)
    np.testing.assert_array_equal(probabilities(loaded.predict(samples, "both")), expected)
    assert expected.std() > 0.01
    assert loaded.stored.mlflow_run_id == models.RUN_ID
    assert loaded.config == models.CONFIG


def test_so_does_that_of_a_real_run(export: Export, samples: list[list[Path]], tmp_path: Path) -> None:
    run = models.train(tmp_path)
    export(["folder", "--model", run, "--out", tmp_path / "out"])
    of_run, of_folder = (
        perceiver_dist.load(place).predict(samples, "both") for place in (run, tmp_path / "out")
    )
    np.testing.assert_array_equal(probabilities(of_folder), probabilities(of_run))


def test_it_holds_the_names_of_the_classes_and_nothing_else_is_left(folder: Path) -> None:
    names = json.loads((folder / "classes.json").read_text())
    assert names == {"pictures": ["circle", "square", "star"], "both": ["0", "1", "2", "3", "4"]}
    assert [path.name for path in folder.parent.iterdir()] == ["first"]


def test_it_can_be_exported_again_with_all_that_is_known(
    folder: Path, export: Export, tmp_path: Path
) -> None:
    export(["folder", "--model", folder, "--out", tmp_path / "again", "--licence", "apache-2.0"])
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_the_card_says_what_the_model_is(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    model, heads = models.CONFIG.model, models.CONFIG.heads
    for part in (
        "license: apache-2.0",
        "# first",
        "| steps | 16 of 20 |",
        "| samples | 512 |",
        "| pictures/accuracy | 0.875 |",
        f"| parameters | {parameter_count(model, heads):,} |",
        f"40 tokens, {forward_flops(model, ['image', 'audio']):.3g} FLOPs",
        r"| both | multilabel | 5 | image, audio | `none` | `held-out\|whole.tar` |",
    ):
        assert part in card


def test_the_cards_three_lines_run(folder: Path, samples: list[list[Path]]) -> None:
    lines = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert lines.count("\n") == 3
    exec(lines.replace("FOLDER", str(folder)).replace("photo.jpg", str(samples[0][0])))  # noqa: S102


def test_an_evaluation_counts_for_the_step_that_it_was_made_at(tmp_path: Path) -> None:
    run = models.write_run(tmp_path / "first")
    stored = find_model(str(run))
    assert training_facts(stored) == TrainingFacts(models.STEPS, models.SAMPLES, models.METRICS)
    models.write_result(run, models.STEPS + 4)
    assert training_facts(stored) == TrainingFacts(models.STEPS, models.SAMPLES, {})


def test_weights_from_elsewhere_have_a_card_too(export: Export, tmp_path: Path) -> None:
    made = models.write_exported(tmp_path / "made", models.all_modalities())
    export(["folder", "--model", made, "--out", tmp_path / "shared"])
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "# made" in card
    assert "Not recorded" in card
    assert "Not stated" in card
    assert not (tmp_path / "shared" / "training.json").exists()


def test_nothing_is_overwritten_and_nothing_half_made(run: Path, export: Export, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    for taken in ("full", "full/file"):
        with pytest.raises(UserError, match="where there is something already; name a new folder"):
            export(["folder", "--model", run, "--out", tmp_path / taken])
    damaged = models.write_exported(tmp_path / "damaged", models.CONFIG)
    (damaged / "weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="not a complete safetensors file"):
        export(["folder", "--model", damaged, "--out", tmp_path / "out"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "full"]


def test_a_store_gets_the_weights_last(run: Path, export: Export, tmp_path: Path) -> None:
    export(["folder", "--model", run, "--out", f"local://{tmp_path}/store/first"])
    written = sorted((tmp_path / "store" / "first").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert len(written) == 6
    assert written[-1].name == "weights.safetensors"
