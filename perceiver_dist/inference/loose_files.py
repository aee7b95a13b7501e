"""Predictions for loose files, one sample per file, without Ray."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from perceiver_dist.errors import UserError
from perceiver_dist.inference.trained_model import Prediction, TrainedModel


@dataclass(frozen=True)
class FilePredictions:
    """Predictions for a list of files.

    Attributes:
        predictions: Predictions of the valid files, in order.
        errors: One line for each of the other files.
    """

    predictions: list[Prediction]
    errors: list[str]


def predict_files(model: TrainedModel, files: Sequence[str], source: str | None = None) -> FilePredictions:
    """Predict each file on its own; an invalid file does not stop the others.

    Args:
        model: The model.
        files: Paths of the files.
        source: Source whose classes are predicted; None selects, for each file, the only source with its modality.
    """
    results = FilePredictions([], [])
    for file in files:
        try:
            results.predictions.extend(model.predict([file], source))
        except UserError as error:
            results.errors.append(str(error))
    return results


def files_table(predictions: Sequence[Prediction], top: int) -> Table:
    """Return a table of the most likely classes of each file.

    Args:
        predictions: One prediction per file.
        top: Number of classes per file.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("file", overflow="fold")
    table.add_column("seen")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right")
    for prediction in predictions:
        for row, likely in enumerate(prediction.top(top)):
            # The name stands once per file, so that files are easy to tell apart.
            file = ["", ""] if row else [prediction.name, " and ".join(prediction.modalities)]
            table.add_row(*file, likely.label, f"{likely.probability:.1%}")
    return table
