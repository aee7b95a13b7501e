"""Tests that the configurations of the papers' experiments have the published sizes."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from perceiver_dist.config.command_line import parse_run, run_parser
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.preflight.dry_run import dry_run
from perceiver_dist.training.zero.learning_rate import learning_rate

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
SMALL = ("fashion_mnist", "furniture", "instruments")


class Published(NamedTuple):
    """Published values of an experiment; None where a paper does not state one."""

    files: str
    channels: int
    tokens: dict[str, int]
    parameters: int | None
    flops: float | None
    batch: int
    rates: list[float]


EXPERIMENTS = [
    Published("imagenet", 261, {"image": 50_176}, 44_912_254, 707.2e9, 1024, [4e-3, 4e-6]),
    Published("imagenet imagenet_permuted", 261, {"image": 50_176}, 44_912_254, 707.2e9, 1024, [4e-3, 4e-6]),
    Published("imagenet imagenet_1cross", 261, {"image": 50_176}, 48_440_627, None, 1024, [2e-3, 0]),
    Published("audioset_raw", 257, {"audio": 480}, None, None, 512, [1e-6, 0]),
    Published("audioset_mel", 259, {"audio": 4800}, None, None, 512, [1e-6, 0]),
    Published("audioset_av_mel", 487, {"audio": 4800, "video": 12_544}, None, None, 512, [1e-6, 0]),
    Published("audioset_video", 483, {"video": 12_544}, None, None, 512, [1e-6, 0]),
    Published("audioset_av_raw", 487, {"audio": 480, "video": 12_544}, None, None, 512, [1e-6, 0]),
    Published("modelnet40", 387, {"points": 2048}, None, None, 512, [1e-3, 1e-3]),
]


def read(files: str) -> RunConfig:
    names = [f"--config={CONFIGS / name}.yaml" for name in files.split()]
    return parse_run(run_parser(""), names, [], RunConfig)[0]


@pytest.mark.parametrize("published", EXPERIMENTS, ids=lambda published: published.files)
def test_the_sizes_are_the_published_ones(published: Published) -> None:
    config = read(published.files)
    result = dry_run(config)
    assert (result["channels"], result["tokens"]) == (published.channels, published.tokens)
    assert result["global_batch"] == published.batch
    if published.parameters:
        assert result["parameters"] == published.parameters
    if published.flops:
        assert result["paper_flops_per_sample"]["imagenet"] == pytest.approx(published.flops, rel=0.01)
    optim = config.scaled_optim
    rates = [learning_rate(step, config.train.steps, optim) for step in (0, config.train.steps - 1)]
    assert rates == pytest.approx(published.rates, abs=1e-8)
    # As in the authors' published code, experiment.py.
    assert (optim.optimizer, optim.beta1, optim.beta2, optim.eps) == ("lamb", 0.9, 0.999, 1e-6)
    assert (optim.weight_decay, optim.decay_latents, optim.clip_norm) == (0.1, True, 10)
    assert optim.label_smoothing == (0.1 if "imagenet" in published.files else 0)
    [problem] = result["problems"]
    assert problem.startswith(f"source '{config.sources[0].name}': no file matches")


def test_the_classes_of_modelnet40_have_the_order_of_its_shards() -> None:
    names = read("modelnet40").sources[0].class_names
    assert names == sorted(names)


def test_every_configuration_of_an_experiment_is_tested() -> None:
    tested = {name for published in EXPERIMENTS for name in published.files.split()}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == tested | {"default", "search", *SMALL}


@pytest.mark.parametrize(
    "name", sorted({name for published in EXPERIMENTS for name in published.files.split()})
)
def test_every_value_says_where_it_is_from(name: str) -> None:
    part = ""
    for line in (CONFIGS / f"{name}.yaml").read_text().splitlines():
        part = line if re.fullmatch(r"\w+:", line) else part
        # Of a source, what is not the data's own.
        is_value = part != "sources:" or re.match(r"  (task|augment|modality_dropout): |    ", line)
        if re.match(r" +\w+: .", line) and is_value:
            assert re.search(r"# (P \d|IO|code|the data's|\?)", line), line


@pytest.mark.parametrize("name", SMALL)
def test_the_configuration_of_a_small_experiment_is_valid(name: str) -> None:
    config, _ = parse_run(run_parser(""), [f"--config={CONFIGS / name}.yaml"], [], RunConfig)
    assert config.sources[0].name == name
