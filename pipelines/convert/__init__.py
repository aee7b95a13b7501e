"""Converters from known data sets to shards: tables of files, folder trees, AudioSet, ModelNet, the MNIST family.

A converter lists the samples and assigns each to a shard, in an order given by the seed, so every shard is a random
subset. `write_conversion` then writes train-NNNNNN.tar, eval-NNNNNN.tar and classes.json, the names of the labels
0, 1, ...
"""

from pipelines.convert.audioset import convert_audioset
from pipelines.convert.conversion import Conversion
from pipelines.convert.conversion_writer import write_conversion
from pipelines.convert.folder import convert_folder, convert_modelnet
from pipelines.convert.idx import convert_fashion_mnist, convert_mnist
from pipelines.convert.manifest import convert_manifest

__all__ = [
    "Conversion",
    "convert_audioset",
    "convert_fashion_mnist",
    "convert_folder",
    "convert_manifest",
    "convert_mnist",
    "convert_modelnet",
    "write_conversion",
]
