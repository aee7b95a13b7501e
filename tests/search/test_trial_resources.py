"""Number of concurrent trials."""

from dataclasses import replace

import pytest
import small_training

from perceiver_dist.search.trial_resources import max_concurrent_trials

pytestmark = pytest.mark.usefixtures("ray_cluster")


def concurrent(workers: int, max_concurrent: int | None = None) -> int:
    """Return the max concurrent trials on the test cluster of 6 CPUs; each trial needs 2 CPUs to read data."""
    config = small_training.search_run(max_concurrent=max_concurrent)
    return max_concurrent_trials(replace(config, train=replace(config.train, num_workers=workers)))


@pytest.mark.parametrize(("workers", "trials"), [(1, 2), (2, 1)])
def test_every_trial_has_cpus_to_train_and_to_read_data(workers: int, trials: int) -> None:
    assert concurrent(workers) == trials


def test_max_concurrent_overrides_the_resources() -> None:
    assert concurrent(1, max_concurrent=4) == 4


def test_at_least_one_trial_runs() -> None:
    assert concurrent(4) == 1
