"""The shards that a trained model works on, indexed."""

from collections.abc import Mapping, Sequence

from perceiver_dist.inference.trained_model import TrainedModel
from perceiver_dist.training.datasets import index_shards
from pipelines.index import SourceIndex
from pipelines.storage import STORAGE_ERRORS, join, list_folder


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
    return index_shards(shards, _index_folder(model, out), model.config.data.storage_seconds)


def _index_folder(model: TrainedModel, out: str) -> str:
    folder = model.config.index_folder
    try:
        return folder if list_folder(folder) else join(out, "index")
    except STORAGE_ERRORS:
        return join(out, "index")
