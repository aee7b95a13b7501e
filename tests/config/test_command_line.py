"""Tests of the command line: complete help, YAML that can be read back, precedence, and one-line errors."""

import importlib
import os
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType

import pytest

from perceiver_dist.config.command_line import parse_run, run_job, run_parser, to_yaml
from perceiver_dist.config.optim_config import OptimConfig
from perceiver_dist.config.options import option_groups
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.modalities import ImageInput
from pipelines.shards.source import SourceConfig

ROOT = Path(__file__).parents[2]
JOB = ROOT / "jobs" / "train_multimodal.py"

CONFIG = """
model:
  width: 16
  image: {height: 8, width: 8, patch: 2}
  audio: {}
sources:
- {name: digits, train_shards: "data/digits-*.tar", modalities: [image], num_classes: 10}
- {name: birds, train_shards: "data/birds-*.tar", modalities: [audio, image], num_classes: 3, task: multilabel}
deepspeed:
  overrides: {zero_optimization: {reduce_bucket_size: 1000}}
"""

SOURCE = "[{name: clips, train_shards: a.tar, modalities: [video], num_classes: 2}]"


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Path of a configuration file."""
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The training job's module."""
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("jobs.train_multimodal")


def parse(*arguments: str, default: str = "not needed") -> RunConfig:
    return parse_run(run_parser("A job."), arguments, [default], RunConfig)[0]


def parse_text(text: str, folder: Path) -> RunConfig:
    path = folder / "written.yaml"
    path.write_text(text)
    return parse("--config", str(path))


def without_spaces(text: str) -> str:
    return "".join(text.split())


def test_help_names_every_option_with_meaning_type_and_default() -> None:
    text = without_spaces(run_parser("A job.").format_help())
    for option in (option for part in option_groups(RunConfig) for option in part.options):
        assert option.name in text
        assert without_spaces(option.meaning) + "(type:" in text
    assert "--train.stepsSTEPSOptimizerstepsofthewholerun" in text
    assert "learnsfromonesource.(type:int,default:1000)" in text
    assert "model.image.patchPixelspersideofonetoken." in text
    assert "asinthepaper(4.1).(type:int,default:1)" in text


def test_help_needs_no_configuration(job: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        job.main(["--help"])
    assert "--dry_run" in capsys.readouterr().out


def test_the_command_line_overrides_the_file(file: str) -> None:
    config = parse("--config", file, "--train.steps", "7", "--model.image.patch=4", "--optim.beta1", "0.5")
    assert config.model.image is not None
    assert (config.train.steps, config.model.image.patch, config.optim.beta1) == (7, 4, 0.5)
    assert (config.model.width, config.model.image.height) == (16, 8)
    assert parse("--model.width", "32", "--config", file).model.width == 32


def test_a_later_file_overrides_an_earlier_one(file: str, tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text("train: {steps: 3}\n")
    config = parse("--config", file, f"--config={tmp_path / 'short.yaml'}")
    assert (config.train.steps, config.model.width) == (3, 16)


def test_optional_parts_of_the_model_can_be_added_and_removed(file: str) -> None:
    config = parse(
        "--config", file, "--model.video.frames", "4", "--model.audio", "null", "--sources", SOURCE
    )
    assert config.model.video is not None
    assert config.model.video.frames == 4
    assert list(config.model.modalities) == ["image", "video"]


def test_the_default_file_is_read_if_none_is_given(file: str) -> None:
    assert parse(default=file) == parse("--config", file)


@pytest.mark.parametrize(
    ("value", "arguments", "expected"),
    [
        ("null", "", 1),
        ("0", "", 0),
        ("null", "--train.gpus_per_worker 0", 0),
        ("null", "--train.gpus_per_worker null", None),
    ],
)
def test_the_environment_sets_what_a_file_leaves_undecided(
    value: str,
    arguments: str,
    expected: int | None,
    file: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    complete = tmp_path / "complete.yaml"
    written = to_yaml(parse("--config", file))
    assert "gpus_per_worker: null" in written
    complete.write_text(written.replace("gpus_per_worker: null", f"gpus_per_worker: {value}"))
    monkeypatch.setenv("PERCEIVER_TRAIN__GPUS_PER_WORKER", "1")
    assert parse("--config", str(complete), *arguments.split()).train.gpus_per_worker == expected


def test_the_environment_overrides_auto_in_the_last_file(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERCEIVER_TRAIN__DEVICE", "cpu")
    files = []
    for device in ("auto", "cuda"):
        (tmp_path / device).write_text(f"train: {{device: {device}}}\n")
        files.append(f"--config={tmp_path / device}")
    assert parse("--config", file, files[0]).train.device == "cpu"
    assert parse("--config", file, *files).train.device == "cuda"
    assert parse("--config", file, *reversed(files)).train.device == "cpu"


def test_the_environment_does_not_restore_a_part_that_a_file_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERCEIVER_MODEL__AUDIO__SAMPLES", "4096")
    without = CONFIG.replace("audio: {}", "audio: null").replace(
        "modalities: [audio, image]", "modalities: [image]"
    )
    assert parse_text(without, tmp_path).model.audio is None


def test_yaml_round_trip_gives_an_equal_configuration(file: str, tmp_path: Path) -> None:
    config = parse("--config", file, "--model.video.patch", "[1, 2, 2]", "--storage.run_name", "null")
    assert parse_text(to_yaml(config), tmp_path) == config


def test_print_config_round_trip_gives_an_equal_configuration(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", file, "--train.steps", "7"]
    with pytest.raises(SystemExit, match="0"):
        parse(*arguments, "--print_config")
    assert parse_text(capsys.readouterr().out, tmp_path) == parse(*arguments)


def test_the_default_configuration_of_the_job_is_valid(job: ModuleType, tmp_path: Path) -> None:
    config = parse("--config", str(job.DEFAULT_CONFIG))
    assert parse_text(to_yaml(config), tmp_path) == config


def run_and_fail(job: ModuleType, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_multimodal.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        run_job(job.main)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--train.stepz 3", "there is no option train.stepz; did you mean train.steps?"),
        ("--train.stepz=3", "there is no option train.stepz; did you mean train.steps?"),
        (
            "--model.image.patches 3",
            "there is no option model.image.patches; did you mean model.image.patch?",
        ),
        ("--dryrun", "there is no option dryrun; did you mean dry_run?"),
        ("--xyzzy", "there is no option xyzzy; see --help"),
        ("--train.steps many", "train.steps is 'many', must be int"),
        ("--train.steps", "argument --train.steps: expected one argument"),
        ("--model.image.height tall", "model.image.height is 'tall', must be int"),
        ("--model.image.max_frequency tall", "model.image.max_frequency is 'tall', must be float or null"),
        ("--model.image 3", "model.image is '3', must be mapping or null"),
        ("--model 3", "model is '3', must be mapping"),
        ("--train.precision fp8", "train.precision is 'fp8', must be one of fp32, bf16"),
        ("--deepspeed.zero_stage 7", "deepspeed.zero_stage is '7', must be one of 0, 1, 2, 3"),
        (
            "--train.lanes 4 --train.num_workers 3",
            "train.num_workers is 3, which does not divide train.lanes 4; "
            "use one of [1, 2, 4] workers, or change train.lanes",
        ),
        ("--model.image.patch 3", "model.image.patch is 3, must divide height 8 and width 8"),
        (
            "--model.audio null",
            "source 'birds': has modality audio, but model.audio is null; set model.audio.* to its sizes",
        ),
    ],
)
def test_a_wrong_option_ends_the_job_with_one_line(
    arguments: str,
    line: str,
    file: str,
    job: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_and_fail(job, ["--config", file, *arguments.split()], monkeypatch)
    captured = capsys.readouterr()
    assert captured.err == f"error: {line}\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("modalities: [image]", "modalities: [smell]", "source 'digits': modality 'smell' is unknown; "
         "choose from image, audio, video, points"),
        ("modalities: [image]", "modalities: [video]", "source 'digits': has modality video, but model.video is "
         "null; set model.video.* to its sizes"),
        ("name: birds", "name: digits", "sources: the name 'digits' is used 2 times; use each name once"),
        ("num_classes: 3", "num_classes: three", "sources.num_classes is 'three', must be int"),
        ("num_classes: 3", "classes: 3", "there is no option sources.classes; did you mean sources.num_classes?"),
        (", num_classes: 3", "", "sources.num_classes has no default: set it in the config file or on the "
         "command line"),
        ("task: multilabel", "task: rank", "sources.task is 'rank', must be one of softmax, multilabel"),
        ("deepspeed:", "deepspede:", "there is no option deepspede; did you mean deepspeed?"),
        ("  width: 16", "  widht: 16", "there is no option model.widht; did you mean model.width?"),
        ("patch: 2", "patch: 3", "model.image.patch is 3, must divide height 8 and width 8"),
        ("[image]", "[image", "--config is '{file}', which is not YAML, line 7: expected ',' or ']', but got '}}'"),
        (CONFIG, "", "--config is '{file}', which holds nothing, must hold a mapping such as 'train: {{steps: 10}}'"),
    ],
)  # fmt: skip
def test_a_wrong_file_ends_the_job_with_one_line(
    old: str,
    new: str,
    line: str,
    file: str,
    job: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert old in CONFIG
    Path(file).write_text(CONFIG.replace(old, new))
    run_and_fail(job, ["--config", file], monkeypatch)
    assert capsys.readouterr().err == f"error: {line.format(file=file)}\n"


@pytest.mark.parametrize(
    ("name", "reason"), [("missing.yaml", "No such file or directory"), ("", "Is a directory")]
)
def test_a_file_that_cannot_be_read_is_named(
    name: str,
    reason: str,
    tmp_path: Path,
    job: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_and_fail(job, ["--config", str(tmp_path / name)], monkeypatch)
    expected = f"--config is '{tmp_path / name}', which cannot be read ({reason}); name a YAML file"
    assert capsys.readouterr().err == f"error: {expected}\n"


def test_the_process_of_a_wrong_option_exits_with_status_2_and_one_line(file: str) -> None:
    command = [sys.executable, str(JOB), "--config", file, "--train.steps", "many"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: train.steps is 'many', must be int\n"


def test_ctrl_c_ends_a_job_without_a_traceback() -> None:
    script = (
        "import os, signal, sys\n"
        # As in a terminal: a shell lets what it starts in the background ignore SIGINT.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from perceiver_dist.config.command_line import run_job\n"
        "run_job(lambda arguments: os.kill(os.getpid(), signal.SIGINT))\n"
    )
    job = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (job.returncode, job.stderr) == (130, "")


@pytest.mark.parametrize("lines", [1, 100_000])
def test_output_that_nobody_reads_ends_a_job_without_a_traceback(lines: int) -> None:
    script = (
        "from perceiver_dist.config.command_line import run_job\n"
        f"run_job(lambda arguments: print('line\\n' * {lines}) or 0)\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    job = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (job.returncode, job.stderr) == (141, "")


@pytest.mark.parametrize(
    ("bug", "last_line"),
    [
        (
            "InternalError('3 rows instead of 4')",
            "perceiver_dist.errors.InternalError: 3 rows instead of 4\n",
        ),
        # Not that of the output, which would be no bug.
        ("BrokenPipeError('a connection to the storage')", "BrokenPipeError: a connection to the storage\n"),
    ],
)
def test_a_bug_ends_a_job_with_its_traceback_and_status_1(bug: str, last_line: str) -> None:
    script = (
        "from perceiver_dist.config.command_line import run_job\n"
        "from perceiver_dist.errors import InternalError\n"
        "def main(arguments):\n"
        f"    raise {bug}\n"
        "run_job(main)\n"
    )
    job = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert job.returncode == 1
    assert job.stderr.startswith("Traceback (most recent call last):")
    assert job.stderr.endswith(last_line)


@pytest.mark.parametrize("part", [OptimConfig, SourceConfig, ImageInput, RunConfig])
@pytest.mark.parametrize("bug", [TypeError, ValueError, AttributeError])
def test_a_bug_in_a_check_of_an_option_is_not_reported_as_a_mistake_of_the_user(
    part: type, bug: type[Exception], file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = run_parser("A job.")

    def check(_: object) -> None:
        raise bug("raised on purpose")

    monkeypatch.setattr(part, "__post_init__", check)
    with pytest.raises((TypeError, ValueError, AttributeError)) as caught:
        parse_run(parser, ["--config", file], [], RunConfig)
    assert "raised on purpose" in "".join(traceback.format_exception(caught.value))


def test_an_argument_that_the_locale_cannot_read_is_named() -> None:
    code = "from perceiver_dist.config.command_line import run_job; run_job(lambda arguments: 0)"
    environment = {**os.environ, "PYTHONUTF8": "1"}
    command: list[str | bytes] = [sys.executable, "-c", code, b"--storage.path=r\xe4ume"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "error: the argument '--storage.path=r\\udce4ume' has bytes that are no utf-8 text, the encoding of this "
        "process; set PYTHONUTF8=1, or a locale of UTF-8 such as LC_ALL=C.UTF-8\n"
    )
