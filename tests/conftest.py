"""Shared by all tests: the hypothesis profile, and one Ray for the session."""

from collections.abc import Iterator

import pytest
import ray
from hypothesis import settings

# No deadline, since a test may be slow on a busy machine; derandomized, so that every run has the same examples.
settings.register_profile("project", deadline=None, derandomize=True, database=None)
settings.load_profile("project")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray for this session, with 6 CPUs on any machine, a number that tests of resources rely on."""
    ray.init(
        address="local",
        num_cpus=6,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the laptop cluster first: it needs ports that the session's Ray occupies from its start to the end."""
    items.sort(key=lambda item: item.path.name != "test_laptop_cluster.py")
