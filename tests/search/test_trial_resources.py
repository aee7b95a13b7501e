"""How many trials run at once."""

from dataclasses import replace

import pytest
import small_training

from perceiver_dist.search.trial_resources import max_concurrent_trials

pytestmark = pytest.mark.usefixtures("ray_cluster")


def at_once(workers: int, max_concurrent: int | None = None) -> int:
    """Trials at once on the tests' cluster of 6 CPUs; each reads with 3 of its own."""
    config = small_training.search_run(max_concurrent=max_concurrent)
    return max_concurrent_trials(replace(config, train=replace(config.train, num_workers=workers)))


@pytest.mark.parametrize("workers", [1, 2])
def test_every_trial_has_cpus_to_train_and_to_read(workers: int) -> None:
    assert at_once(workers) == 1


def test_another_number_can_be_set() -> None:
    assert at_once(1, max_concurrent=4) == 4


def test_one_trial_runs_where_there_is_room_for_less_than_one() -> None:
    assert at_once(4) == 1
