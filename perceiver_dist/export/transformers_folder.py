"""Model folders of `transformers` to and from folders of this project; neither needs the library."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from perceiver_dist.checkpoint.run_folder import CONFIG
from perceiver_dist.checkpoint.stored_model import WEIGHTS, find_model
from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError
from perceiver_dist.modalities import ImageInput
from perceiver_dist.model.inputs import IMAGENET_MEAN, IMAGENET_STD
from perceiver_dist.model.transformers_layout import from_transformers, to_transformers
from pipelines.shards.source import SourceConfig

_THEIR_WEIGHTS, _THEIR_CONFIG = "model.safetensors", "config.json"


def convert_from_transformers(
    folder: str, out: str, source: str = "imagenet", train_shards: str = "shards/train-*.tar"
) -> None:
    """Turn a model folder of `transformers` into weights and a configuration.

    Args:
        folder: Holds config.json and model.safetensors of a PerceiverForImageClassificationFourier.
        out: Folder to make; gets config.yaml and weights.safetensors, which are loaded as those of a run are.
        source: Name of the source whose classes the model tells apart.
        train_shards: Shards of the source, for config.yaml; they need not be there.

    Raises:
        UserError: A file cannot be read, or it is a model that cannot be converted.
    """
    try:
        their_config = json.loads(_read_text(Path(folder) / _THEIR_CONFIG))
    except ValueError as error:
        raise UserError(
            f"{folder}/{_THEIR_CONFIG} is not JSON ({error}): take the one saved with the model"
        ) from error
    model, weights = from_transformers(_read_weights(Path(folder) / _THEIR_WEIGHTS), their_config, source)
    classes = len(weights[f"heads.{source}.bias"])
    config = RunConfig(model=model, sources=[SourceConfig(source, train_shards, ["image"], classes)])
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out) / CONFIG).write_text(to_yaml(config))
    _write_weights(weights, Path(out) / WEIGHTS)


def convert_to_transformers(folder: str, out: str, source: str = "imagenet") -> None:
    """Turn a trained model into a model folder of `transformers`.

    Args:
        folder: A run such as runs/NAME (its newest checkpoint), one of its checkpoints, an exported folder, or what was
            converted before.
        out: Folder to make; gets config.json, preprocessor_config.json and model.safetensors.
        source: Whose query and head to take.

    Raises:
        UserError: There is no whole model, or the layout has no place for what it is.
    """
    stored = find_model(folder)
    model = stored.config.model
    weights, their_config = to_transformers(stored.weights(), model, source)
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out) / _THEIR_CONFIG).write_text(json.dumps(their_config, indent=1))
    if model.image is not None:
        processor = json.dumps(_processor(model.image), indent=1)
        (Path(out) / "preprocessor_config.json").write_text(processor)
    _write_weights(weights, Path(out) / _THEIR_WEIGHTS)


def _processor(image: ImageInput) -> dict[str, Any]:
    """What turns a picture into the model's pixels there."""
    size = {"height": image.height, "width": image.width}
    symmetric = image.pixel_scale == "symmetric"
    return {
        "image_processor_type": "PerceiverImageProcessor",
        "size": size,
        "crop_size": size,
        "image_mean": [0.5] * 3 if symmetric else list(IMAGENET_MEAN),
        "image_std": [0.5] * 3 if symmetric else list(IMAGENET_STD),
    }


def _read_text(file: Path) -> str:
    """Return what a file holds.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): name the folder that holds it") from error


def _read_weights(file: Path) -> dict[str, Tensor]:
    """Return a file's tensors by name.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file} is no whole safetensors file ({error}): name the folder that holds it"
        ) from error


def _write_weights(weights: dict[str, Tensor], file: Path) -> None:
    # Parts of one matrix share memory, which the format refuses.
    save_file({name: tensor.clone() for name, tensor in weights.items()}, file, metadata={"format": "pt"})
