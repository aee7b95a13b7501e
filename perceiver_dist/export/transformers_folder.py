"""Conversion of model folders from and to the Hugging Face `transformers` layout, without that library."""

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

_HF_WEIGHTS, _HF_CONFIG = "model.safetensors", "config.json"


def convert_from_transformers(
    folder: str, out: str, source: str = "imagenet", train_shards: str = "shards/train-*.tar"
) -> None:
    """Convert a model folder of `transformers` into an exported folder of this project.

    Args:
        folder: Folder with config.json and model.safetensors of a PerceiverForImageClassificationFourier.
        out: Folder for config.yaml and weights.safetensors, which `perceiver_dist.load` reads.
        source: Name for the source whose classes the model predicts.
        train_shards: Shards of the source, for config.yaml; they need not exist.

    Raises:
        UserError: A file cannot be read, or the model cannot be converted.
    """
    try:
        hf_config = json.loads(_read_text(Path(folder) / _HF_CONFIG))
    except ValueError as error:
        raise UserError(
            f"{folder}/{_HF_CONFIG} is not JSON ({error}): use the one saved with the model"
        ) from error
    model, weights = from_transformers(_read_weights(Path(folder) / _HF_WEIGHTS), hf_config, source)
    classes = len(weights[f"heads.{source}.bias"])
    config = RunConfig(model=model, sources=[SourceConfig(source, train_shards, ["image"], classes)])
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out) / CONFIG).write_text(to_yaml(config))
    _write_weights(weights, Path(out) / WEIGHTS)


def convert_to_transformers(folder: str, out: str, source: str = "imagenet") -> None:
    """Convert a trained model into a model folder of `transformers`.

    Args:
        folder: Path or URI of a run such as runs/NAME (its newest checkpoint), of a checkpoint, of an exported folder,
            or of a folder converted by from_transformers.
        out: Folder for config.json, preprocessor_config.json and model.safetensors.
        source: Source whose decoder query and head are converted.

    Raises:
        UserError: The model is missing or damaged, or the layout of `transformers` cannot represent it.
    """
    stored = find_model(folder)
    model = stored.config.model
    weights, hf_config = to_transformers(stored.weights(), model, source)
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out) / _HF_CONFIG).write_text(json.dumps(hf_config, indent=1))
    if model.image is not None:
        processor = json.dumps(_processor(model.image), indent=1)
        (Path(out) / "preprocessor_config.json").write_text(processor)
    _write_weights(weights, Path(out) / _HF_WEIGHTS)


def _processor(image: ImageInput) -> dict[str, Any]:
    """Return the image processor configuration that scales pixels as this model expects them."""
    size = {"height": image.height, "width": image.width}
    symmetric = image.pixel_scale == "symmetric"  # -1 to 1: mean and deviation 0.5 of pixels from 0 to 1
    return {
        "image_processor_type": "PerceiverImageProcessor",
        "size": size,
        "crop_size": size,
        "image_mean": [0.5] * 3 if symmetric else list(IMAGENET_MEAN),
        "image_std": [0.5] * 3 if symmetric else list(IMAGENET_STD),
    }


def _read_text(file: Path) -> str:
    """Return the text of a file.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): name the folder that holds it") from error


def _read_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file} is not a valid safetensors file ({error}): name the folder that holds it"
        ) from error


def _write_weights(weights: dict[str, Tensor], file: Path) -> None:
    # Cloned, since slices of one matrix share memory, which safetensors rejects. save_pretrained writes this metadata.
    save_file({name: tensor.clone() for name, tensor in weights.items()}, file, metadata={"format": "pt"})
