"""Learning rate schedule: warm-up, cosine, steps and constant."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceiver_dist.config.optim_config import OptimConfig
from perceiver_dist.config.run_config import RunConfig, TrainConfig
from perceiver_dist.errors import UserError
from perceiver_dist.modalities import ImageInput
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.training.zero.learning_rate import learning_rate
from pipelines.shards.source import SourceConfig

PLAIN = OptimConfig(learning_rate=1.0, warmup_steps=0)


@given(
    optim=st.builds(
        OptimConfig,
        learning_rate=st.floats(1e-6, 1e2),
        warmup_steps=st.integers(0, 50),
        schedule=st.sampled_from(["cosine", "steps", "constant"]),
        final_fraction=st.floats(0, 1),
        flat_fraction=st.floats(0, 1),
        decay_at=st.lists(st.floats(0, 1), max_size=4).map(tuple),
    ),
    steps=st.integers(1, 200),
)
def test_the_rate_rises_in_the_warm_up_and_never_after(optim: OptimConfig, steps: int) -> None:
    rates = [learning_rate(step, steps, optim) for step in range(steps)]
    warm = min(optim.warmup_steps, steps)
    assert rates[:warm] == sorted(rates[:warm])
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in zip(rates[warm:], rates[warm + 1 :]))  # noqa: B905
    assert all(0 <= rate <= optim.learning_rate * (1 + 1e-12) for rate in rates)


def test_the_paper_s_imagenet_rate_falls_at_epochs_84_102_and_114_of_120() -> None:
    optim = replace(PLAIN, learning_rate=4e-3, schedule="steps")
    rates = [learning_rate(epoch, 120, optim) for epoch in range(120)]
    changes = [epoch for epoch in range(1, 120) if rates[epoch] != rates[epoch - 1]]
    assert changes == [84, 102, 114]
    assert [rates[epoch] for epoch in (0, *changes)] == pytest.approx([4e-3, 4e-4, 4e-5, 4e-6])


def test_perceiver_io_s_rate_is_flat_for_55_of_110_epochs_and_then_half_a_cosine() -> None:
    optim = replace(PLAIN, flat_fraction=0.5)
    rates = [learning_rate(epoch, 110, optim) for epoch in range(110)]
    assert rates[:56] == [1.0] * 56
    assert rates[82] == pytest.approx(0.5, abs=0.02)
    assert rates[109] < 0.001


def test_a_constant_rate_is_constant_after_the_warm_up() -> None:
    optim = replace(PLAIN, warmup_steps=4, schedule="constant")
    assert [learning_rate(step, 10, optim) for step in range(10)] == [0.25, 0.5, 0.75, 1, *[1.0] * 6]


def test_the_authors_rate_for_256_samples_is_2e3_for_1024() -> None:
    # As `_get_batch_scaled_lr` in perceiver/train/utils.py of their code.
    config = RunConfig(
        ModelConfig(image=ImageInput(8, 8, 1)),
        [SourceConfig("pictures", "x.tar", ["image"], 3)],
        OptimConfig(learning_rate=5e-4, learning_rate_batch=256),
        TrainConfig(lanes=64, micro_batch=16, num_workers=8),
    )
    assert config.scaled_optim.learning_rate == pytest.approx(2e-3)
    plain = replace(config, optim=PLAIN)
    assert plain.scaled_optim is PLAIN


def test_a_fraction_out_of_range_is_named() -> None:
    with pytest.raises(UserError, match=r"optim\.decay_at is \[84\], every entry must be between 0 and 1"):
        OptimConfig(decay_at=(84,))
