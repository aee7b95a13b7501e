"""What a trained model works on: shards, indexed, and a folder for the result."""

from collections.abc import Mapping, Sequence

from perceiver_dist.cluster.connect import check_is_kept
from perceiver_dist.data.shard_indexing import index_on_cluster
from perceiver_dist.inference.trained_model import TrainedModel
from pipelines.shards.shard_index import SourceIndex
from pipelines.storage.files import STORAGE_ERRORS, absolute_uri, check_writable, join, list_folder


def index_for(model: TrainedModel, shards: Mapping[str, Sequence[str]], out: str) -> dict[str, SourceIndex]:
    """Index shards on the cluster, at no cost those that the training knows.

    Args:
        model: The model.
        shards: Paths or URIs of tar files, by any name.
        out: Path or URI of the folder for the result; indexes go below it if those of the training are gone.

    Returns:
        The indexed shards by the same names.

    Raises:
        UserError: A shard is missing, damaged or empty; the first such shard is named.
    """
    return index_on_cluster(shards, _index_folder(model, out), model.config.data.storage_seconds)


def output_folder(out: str) -> str:
    """Make a folder for a result, and make sure that it can be written and will stay.

    Args:
        out: Path or URI.

    Returns:
        Absolute path or URI.

    Raises:
        UserError: It cannot be written, or would go with a job's copy of a folder.
    """
    folder = absolute_uri(out)
    check_is_kept(folder, "--out")
    check_writable(folder, "--out")
    return folder


def _index_folder(model: TrainedModel, out: str) -> str:
    folder = model.config.index_folder
    try:
        return folder if list_folder(folder) else join(out, "_index")
    except STORAGE_ERRORS:
        return join(out, "_index")
