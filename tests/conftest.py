"""What all tests share: how hypothesis searches, and one Ray for the session."""

from collections.abc import Iterator

import pytest
import ray
from hypothesis import settings

# No deadline, since a busy machine is slow for no fault of the code; the same examples in every run.
settings.register_profile("project", deadline=None, derandomize=True, database=None)
settings.load_profile("project")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray of this session's own, with 6 CPUs whatever the machine has."""
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
    """Put the laptop cluster first: it needs ports that this session's own Ray takes from its start to the end."""
    items.sort(key=lambda item: item.path.name != "test_laptop_cluster.py")
