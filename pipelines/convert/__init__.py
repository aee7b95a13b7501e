"""Known data to shards: a CSV manifest, a tree of folders, ModelNet's meshes, Fashion-MNIST's idx files.

Every converter shuffles by a seed, so that shards are alike, writes train-NNNNNN.tar, eval-NNNNNN.tar and
classes.json (the names of the labels 0, 1, ...) into one directory, and returns the source as a run's
configuration names it.
"""

from pipelines.convert.fashion_mnist import convert_fashion_mnist
from pipelines.convert.folder import convert_folder, convert_modelnet
from pipelines.convert.manifest import convert_manifest

__all__ = ["convert_fashion_mnist", "convert_folder", "convert_manifest", "convert_modelnet"]
