"""Node provider of laptop.yaml: Ray's fake nodes, each with its own folder for uploaded working directories.

By default, all nodes of a machine share this folder. Each node then unpacks a job's upload when its first process
starts, over the copy in which other nodes already run, and `ray job submit --working-dir` fails.
"""

from typing import Any
from unittest.mock import patch

from ray._private import ray_constants
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class LaptopNodes(FakeMultiNodeProvider):
    """Node provider for Ray's autoscaler."""

    def _create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        with self.lock:
            folder = f"{ray_constants.DEFAULT_RUNTIME_ENV_DIR_NAME}_{self._next_node_id + 1}"
            # The provider has no option for the folder; nodes read its name from this constant (Ray 2.60).
            with patch.object(ray_constants, "DEFAULT_RUNTIME_ENV_DIR_NAME", folder):
                super()._create_node_with_resources_and_labels(*arguments)
