"""The nodes of laptop.yaml: Ray's pretended ones, each with a folder of its own for what jobs upload.

By themselves all nodes of one machine share this folder. Each of them unpacks a job's upload when its first process
starts, over the copy that the others already run in, and `ray job submit --working-dir` would fail.
"""

from typing import Any
from unittest.mock import patch

from ray._private import ray_constants
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class LaptopNodes(FakeMultiNodeProvider):
    """A provider of nodes for Ray's autoscaler."""

    def _create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        with self.lock:
            folder = f"{ray_constants.DEFAULT_RUNTIME_ENV_DIR_NAME}_{self._next_node_id + 1}"
            # Ray's provider has no setting for it, and its nodes take the name from here.
            with patch.object(ray_constants, "DEFAULT_RUNTIME_ENV_DIR_NAME", folder):
                super()._create_node_with_resources_and_labels(*arguments)
