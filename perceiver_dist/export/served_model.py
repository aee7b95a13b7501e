"""MLflow pyfunc model: takes a table of files, returns a table of predictions.

MLflow loads this module by its name from the copy of this project next to the weights; it needs neither Ray nor
DeepSpeed. Columns of the input:

    name        name of the file, whose extension determines the modality
    content     bytes of the file; base64 in JSON over HTTP
    sample      optional: files with the same text form one sample, such as an image and a sound
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from perceiver_dist.errors import UserError
from perceiver_dist.inference.sample_files import sample_from_bytes
from perceiver_dist.inference.trained_model import load_model


class ServedModel:
    """A trained model with MLflow's pyfunc interface.

    Args:
        folder: Folder of an exported model.

    Raises:
        UserError: The model is missing or damaged.
    """

    def __init__(self, folder: str) -> None:
        self.model = load_model(folder, "cuda" if torch.cuda.is_available() else "cpu")

    def predict(self, table: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Predict the classes of samples.

        Args:
            table: Files, with the columns listed in the module's docstring.
            params: `source`: source whose classes are predicted; "" selects the only source that has the modalities of
                all files.

        Returns:
            One row per sample, in the order of their first files: `name` of the first file, `label` and `probability`
            of the most likely class, and `probabilities` of all classes, in the order of classes.json.

        Raises:
            MlflowException: A file is damaged, of an unsupported type, or of a modality that the source does not have.
                The server returns the message with status 400.
        """
        # Without a sample column, the row's number makes each file a sample of its own.
        samples: dict[str | int, list[tuple[str, bytes]]] = {}
        for number, row in enumerate(table.to_dict("records")):
            sample = row.get("sample")
            samples.setdefault(sample if isinstance(sample, str) else number, []).append(
                (row["name"], row["content"])
            )
        source = (params or {}).get("source") or None
        try:
            predictions = self.model.predict_samples(
                [sample_from_bytes(files) for files in samples.values()], source
            )
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
    """Entry point of a pyfunc loader module; MLflow calls it by this name."""
    return ServedModel(path)
