"""Predictions on disk: Parquet files of a fixed number of samples each, and what they were made with beside them.

A part is there whole or not at all, and which samples it holds follows from the settings alone; so work that was
stopped goes on with the first part that is missing. The settings' name begins with an underscore, since whoever reads
the folder as one table (Arrow, pandas, Spark) passes over such files.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from perceiver_dist.errors import UserError
from perceiver_dist.inference.trained_model import TrainedModel
from pipelines.shards.shard_index import SourceIndex
from pipelines.storage.files import join, list_folder, read_text, write_bytes, write_text

SETTINGS = "_predictions.json"
_PART = "part-{:08d}.parquet"


@dataclass(frozen=True)
class PredictionSettings:
    """What decides the content of every part.

    Attributes:
        model: Path or URI of the model.
        weights: SHA-256 of its weights.
        source: Whose classes.
        shards: The shards as they were named.
        content: SHA-256 of the shards' addresses and digests, in order.
        samples: Number of samples.
        batch: Samples in a batch.
        samples_per_part: Samples in a part, a multiple of the batch.
        top: How many classes are named.
        embeddings: Whether the mean of the latents is stored.
    """

    model: str
    weights: str
    source: str
    shards: str
    content: str
    samples: int
    batch: int
    samples_per_part: int
    top: int
    embeddings: bool

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-self.samples // self.samples_per_part)

    @property
    def units_per_part(self) -> int:
        """Number of batches in a part, the last part aside."""
        return self.samples_per_part // self.batch


def digest_of_weights(model: TrainedModel) -> str:
    """Return the SHA-256 of a model's weights, names included.

    Args:
        model: The model, on the host.
    """
    digest = hashlib.sha256()
    weights: dict[str, Tensor] = model.model.state_dict()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].numpy().tobytes())
    return digest.hexdigest()


def digest_of_shards(index: SourceIndex) -> str:
    """Return the SHA-256 of the addresses and digests of shards, in order.

    Args:
        index: The indexed shards.
    """
    lines = "".join(f"{shard.uri} {shard.sha256}\n" for shard in index.shards)
    return hashlib.sha256(lines.encode()).hexdigest()


class PredictionParts:
    """The folder of the parts.

    Args:
        out: Path or URI of the folder.
        settings: What the parts are made with; written down if they are the first.

    Attributes:
        out: Path or URI of the folder.
        settings: What the parts are made with.

    Raises:
        UserError: The folder holds parts that were made with other settings.
    """

    def __init__(self, out: str, settings: PredictionSettings) -> None:
        self.out = out
        self.settings = settings
        text = read_text(join(out, SETTINGS))
        if text is not None:
            _check_same(out, text, settings)
        elif self.first_missing():
            raise UserError(f"--out is {out}, which holds parts but no {SETTINGS}; take another folder")
        write_text(join(out, SETTINGS), json.dumps(asdict(settings), indent=1) + "\n")

    def first_missing(self) -> int:
        """Return the number of the first part that is not there; the number of parts if all are."""
        there = list_folder(self.out)
        parts = self.settings.parts
        return next((number for number in range(parts) if _PART.format(number) not in there), parts)

    def write(self, number: int, tables: Iterable[pa.Table]) -> None:
        """Write a part as a whole.

        Args:
            number: Its number, from 0.
            tables: Its rows, in order.

        Raises:
            OSError: The storage refuses.
        """
        target = pa.BufferOutputStream()
        pq.write_table(pa.concat_tables(tables), target)
        write_bytes(join(self.out, _PART.format(number)), target.getvalue())


def _check_same(out: str, text: str, settings: PredictionSettings) -> None:
    """Make sure that parts were made with the settings of now.

    Raises:
        UserError: A setting was another.
    """
    try:
        before = json.loads(text)
    except ValueError as error:
        raise UserError(f"{join(out, SETTINGS)} is no JSON ({error}); take another --out") from error
    for name, value in asdict(settings).items():
        if before.get(name) != value:
            raise UserError(
                f"--out is {out}, which holds predictions with {name} {before.get(name)}, now it is {value}; give the "
                "same options to go on there, or take another --out"
            )
