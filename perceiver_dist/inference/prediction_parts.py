"""Folder of predictions: Parquet files (parts) with a fixed number of samples each, and the settings they depend on.

Each part is written atomically, and its samples are a function of the settings. A prediction that was interrupted
therefore resumes at the first missing part. The name of the settings file begins with an underscore because readers
that take the folder as one table (Arrow, pandas, Spark) skip such files.
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
    """Settings that determine the content of every part.

    Attributes:
        model: Path or URI of the model.
        weights: SHA-256 of its weights.
        source: Source whose classes are predicted.
        shards: The shards, as given on the command line.
        content: SHA-256 of the shards' URIs and digests, in order.
        samples: Number of samples.
        batch: Samples per batch; part of the settings since it changes the last digits of probabilities.
        samples_per_part: Samples per part, a multiple of the batch.
        top: Number of classes per sample.
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
        return -(-self.samples // self.samples_per_part)  # rounded up

    @property
    def units_per_part(self) -> int:
        """Number of batches per part; the last part may have fewer."""
        return self.samples_per_part // self.batch


def digest_of_weights(model: TrainedModel) -> str:
    """Return the SHA-256 of a model's weights and their names.

    Args:
        model: The model, on the CPU.
    """
    digest = hashlib.sha256()
    weights: dict[str, Tensor] = model.model.state_dict()
    # By name, so that the digest does not depend on the order of the modules.
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].numpy().tobytes())
    return digest.hexdigest()


def digest_of_shards(index: SourceIndex) -> str:
    """Return the SHA-256 of the URIs and digests of shards, in order.

    Args:
        index: Index of the shards.
    """
    lines = "".join(f"{shard.shown_uri} {shard.sha256}\n" for shard in index.shards)
    return hashlib.sha256(lines.encode()).hexdigest()


class PredictionParts:
    """The folder of a prediction's parts.

    Args:
        out: Path or URI of the folder.
        settings: Settings of the parts, written to the folder.

    Attributes:
        out: Path or URI of the folder.
        settings: Settings of the parts.

    Raises:
        UserError: The folder holds parts with other or unknown settings.
    """

    def __init__(self, out: str, settings: PredictionSettings) -> None:
        self.out = out
        self.settings = settings
        text = read_text(join(out, SETTINGS))
        if text is not None:
            _check_same(out, text, settings)
        elif self.first_missing():
            raise UserError(f"--out is {out}, which holds parts but no {SETTINGS}; choose another folder")
        # Written before the first part, so that parts never exist without their settings.
        write_text(join(out, SETTINGS), json.dumps(asdict(settings), indent=1) + "\n")

    def first_missing(self) -> int:
        """Return the number of the first missing part; the number of parts if none is missing."""
        files = list_folder(self.out)
        parts = self.settings.parts
        return next((number for number in range(parts) if _PART.format(number) not in files), parts)

    def write(self, number: int, tables: Iterable[pa.Table]) -> None:
        """Write a part atomically.

        Args:
            number: Number of the part, from 0.
            tables: Rows of the part, in order.

        Raises:
            OSError: The storage failed.
        """
        target = pa.BufferOutputStream()
        pq.write_table(pa.concat_tables(tables), target)
        write_bytes(join(self.out, _PART.format(number)), target.getvalue())


def _check_same(out: str, text: str, settings: PredictionSettings) -> None:
    """Check that the stored settings equal those of this job.

    Raises:
        UserError: They cannot be read, or a setting differs.
    """
    try:
        stored = json.loads(text)
    except ValueError as error:
        raise UserError(f"{join(out, SETTINGS)} is not valid JSON ({error}); choose another --out") from error
    for name, value in asdict(settings).items():
        if stored.get(name) != value:
            raise UserError(
                f"--out is {out}, which holds predictions with {name} {stored.get(name)}, now it is {value}; "
                "repeat the options of these predictions to resume, or choose another --out"
            )
