"""What a trained model says of single files, each a sample of whichever source sees its kind; without Ray."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from perceiver_dist.errors import UserError
from perceiver_dist.inference.trained_model import Prediction, TrainedModel


@dataclass(frozen=True)
class FileAnswers:
    """What became of the files.

    Attributes:
        predictions: Of the files that could be used, in order.
        errors: One line for each of the others.
    """

    predictions: list[Prediction]
    errors: list[str]


def predict_files(model: TrainedModel, files: Sequence[str], source: str | None = None) -> FileAnswers:
    """Predict each file by itself; one that cannot be used does not stop the others.

    Args:
        model: The model.
        files: Paths of the files.
        source: Whose classes to tell apart; None for the only source that sees the file.
    """
    answers = FileAnswers([], [])
    for file in files:
        try:
            answers.predictions.extend(model.predict([file], source))
        except UserError as error:
            answers.errors.append(str(error))
    return answers


def files_table(predictions: Sequence[Prediction], top: int) -> Table:
    """Return a table with the likeliest classes of each file.

    Args:
        predictions: Of each file.
        top: How many classes to name.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("file", overflow="fold")
    table.add_column("seen")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right")
    for prediction in predictions:
        for row, answer in enumerate(prediction.top(top)):
            about = ["", ""] if row else [prediction.name, " and ".join(prediction.modalities)]
            table.add_row(*about, answer.label, f"{answer.probability:.1%}")
    return table
