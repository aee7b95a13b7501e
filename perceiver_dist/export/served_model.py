"""What MLflow loads and serves: a table of files goes in, a table of answers comes out.

MLflow finds this module by its name, and a copy of this project beside the weights; Ray and DeepSpeed are not needed.
Columns of the table that goes in:

    name        the file's name; its extension says what it is
    content     its bytes; over HTTP, as JSON, in base64
    sample      optional: files with the same text here are one sample, such as a picture and a sound
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from perceiver_dist.errors import UserError
from perceiver_dist.inference.sample_files import sample_of
from perceiver_dist.inference.trained_model import load_model


class ServedModel:
    """A trained model that answers tables.

    Args:
        place: Folder of an exported model.

    Raises:
        UserError: There is no whole model.
    """

    def __init__(self, place: str) -> None:
        self.model = load_model(place, "cuda" if torch.cuda.is_available() else "cpu")

    def predict(self, table: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Say what files show.

        Args:
            table: See the module.
            params: `source`: whose classes to tell apart; "" for the only source that sees all the files.

        Returns:
            A row for each sample, in the order in which they begin: `name` of its first file, `label` and
            `probability` of the likeliest class, and `probabilities` of all, in the order of classes.json.

        Raises:
            MlflowException: A file is damaged, of unknown kind, or of a modality that the source does not see; the
                server hands the reason on.
        """
        samples: dict[str | int, list[tuple[str, bytes]]] = {}
        for number, row in enumerate(table.to_dict("records")):
            sample = row.get("sample")
            samples.setdefault(sample if isinstance(sample, str) else number, []).append(
                (row["name"], row["content"])
            )
        source = (params or {}).get("source") or None
        try:
            predictions = self.model.predict_read([sample_of(files) for files in samples.values()], source)
        except UserError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error
        return pd.DataFrame(
            [
                (prediction.name, *prediction.top(1)[0], prediction.probabilities.tolist())
                for prediction in predictions
            ],
            columns=["name", "label", "probability", "probabilities"],
        )


def _load_pyfunc(path: str) -> ServedModel:
    """Return the model; MLflow calls it by this name."""
    return ServedModel(path)
