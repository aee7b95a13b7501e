"""Distributed training of the Perceiver (Jaegle et al. 2021): model, training, search, tracking, inference.

A trained model in three lines:

    import perceiver_dist
    model = perceiver_dist.load("runs/NAME")
    print(model.predict(["photo.jpg"])[0].top(3))
"""

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perceiver_dist.inference.trained_model import TrainedModel


def load(path: str | PathLike[str], device: str = "cpu") -> "TrainedModel":
    """Load a trained model with its preprocessing; needs neither Ray, DeepSpeed nor MLflow.

    Args:
        path: Path or URI of a run such as runs/NAME (its newest checkpoint), of a checkpoint such as
            runs/NAME/step-00001000, or of an exported model.
        device: Device to run on, as torch names it.

    Returns:
        The model; `load("runs/NAME").predict(["photo.jpg"])[0].top(3)` returns the three most likely classes.

    Raises:
        UserError: There is no trained model at the path, or it is damaged.
    """
    # Imported here, so that importing any part of the package does not import torch.
    from perceiver_dist.inference.trained_model import load_model

    return load_model(path, device)
