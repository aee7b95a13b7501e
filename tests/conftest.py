"""Settings and fixtures of all tests: the hypothesis profile and one local Ray per session."""

import logging
from collections.abc import Iterator

import pytest
import ray
from hypothesis import settings

# No deadline, since the code is not at fault when a machine is busy. Derandomized and without a database of earlier
# failures, so that every run tests the same examples.
settings.register_profile("project", deadline=None, derandomize=True, database=None)
settings.load_profile("project")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Start Ray for this session, with 6 logical CPUs on any machine: tests of resources rely on the number."""
    ray.init(
        address="local",
        num_cpus=6,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of the laptop cluster first: they need ports that this session's Ray holds once it has started."""
    items.sort(key=lambda item: item.path.name != "test_laptop_cluster.py")
