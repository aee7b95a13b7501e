"""Input and output of inference on shards: indexes of the shards, and the folder for the result."""

from collections.abc import Mapping, Sequence

from perceiver_dist.cluster.connect import check_is_kept
from perceiver_dist.data.shard_indexing import index_on_cluster
from perceiver_dist.inference.trained_model import TrainedModel
from pipelines.shards.shard_index import SourceIndex
from pipelines.storage.files import STORAGE_ERRORS, absolute_uri, join, list_folder
from pipelines.storage.write_check import check_writable


def index_for(model: TrainedModel, shards: Mapping[str, Sequence[str]], out: str) -> dict[str, SourceIndex]:
    """Index shards on the cluster; the indexes that the training wrote are reused.

    Args:
        model: The model.
        shards: Name -> paths or URIs of tar files.
        out: Path or URI of the folder for the result; indexes are written below it if those of the training no longer
            exist.

    Returns:
        Name -> index of its shards.

    Raises:
        UserError: A shard is missing, damaged or empty; the first such shard is named.
    """
    return index_on_cluster(shards, _index_folder(model, out), model.config.data.storage_seconds)


def output_folder(out: str) -> str:
    """Create the folder for a result, and check that it is writable and outlives the job.

    Args:
        out: Path or URI.

    Returns:
        Absolute path or URI.

    Raises:
        UserError: The folder cannot be written, or lies in a job's uploaded working directory, which Ray deletes.
    """
    folder = absolute_uri(out)
    check_is_kept(folder, "--out")
    check_writable(folder, "--out")
    return folder


def _index_folder(model: TrainedModel, out: str) -> str:
    # Missing or empty if the model was moved away from the storage of its training.
    folder = model.config.index_folder
    try:
        return folder if list_folder(folder) else join(out, "_index")
    except STORAGE_ERRORS:
        return join(out, "_index")
