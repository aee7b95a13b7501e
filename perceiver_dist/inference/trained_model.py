"""Trained model with its preprocessing: takes files, returns class probabilities.

Samples are decoded as in the evaluations of a training: the window at the center in time, the whole image, a seeded
choice of points. Preprocessing therefore cannot differ between evaluation and use. Needs neither Ray, DeepSpeed nor
MLflow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from perceiver_dist.checkpoint.stored_model import StoredModel, find_model
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError
from perceiver_dist.inference.sample_files import SampleFiles, read_files
from perceiver_dist.modalities import ModalityInput
from perceiver_dist.model.perceiver import Perceiver
from perceiver_dist.model.precision import autocast
from pipelines.augment.randomness import evaluation_randomness
from pipelines.decode.sample import Arrays, decode_sample
from pipelines.errors import SampleError
from pipelines.fields import FIELD_MODALITY
from pipelines.shards.sample_reader import RawSample
from pipelines.shards.source import SourceConfig


class ClassProbability(NamedTuple):
    """A class and its probability.

    Attributes:
        label: Name of the class, or its number if the source has no class names.
        probability: 0 to 1. Softmax probabilities of all classes add up to 1, multilabel ones are independent.
    """

    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """Prediction for one sample.

    Attributes:
        name: Path or name of the sample's file, the first one if it has several.
        modalities: Modalities that the model was given.
        class_names: Names of the classes.
        probabilities: (classes,) fp32.
    """

    name: str
    modalities: tuple[str, ...]
    class_names: Sequence[str]
    probabilities: np.ndarray

    def top(self, count: int = 5) -> list[ClassProbability]:
        """Return the most likely classes, most likely first.

        Args:
            count: Max number of classes.
        """
        # Stable, so that classes of equal probability come in the order of their numbers.
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [
            ClassProbability(self.class_names[index], float(self.probabilities[index])) for index in order
        ]


class TrainedModel:
    """A trained Perceiver and the configuration of its training.

    Args:
        stored: Weights and configuration on storage.
        device: Device to run on.
        weights: Name -> weight, fp32 of any shape, if they are in memory already; None reads them from storage.

    Attributes:
        stored: Weights and configuration on storage.
        model: The module, in evaluation mode.
        device: Device that the module is on.

    Raises:
        UserError: The weights are damaged, or do not match the configuration.
    """

    def __init__(
        self,
        stored: StoredModel,
        device: str | torch.device = "cpu",
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.stored = stored
        self.device = torch.device(device)
        self.model = Perceiver(self.config.model, self.config.heads)
        weights = stored.weights() if weights is None else weights
        # load_state_dict would report a mismatch over many lines, without the place.
        _check_weights(self.model, weights, stored.place)
        self.model.load_state_dict(weights)
        self.model.to(self.device).eval()

    @property
    def config(self) -> RunConfig:
        """Configuration of the training."""
        return self.stored.config

    def predict(
        self, samples: Sequence[SampleFiles], source: str | None = None, batch: int = 32
    ) -> list[Prediction]:
        """Predict the classes of samples in files.

        Args:
            samples: One entry per sample: a file, or a list of files with at most one per modality.
            source: Source whose classes are predicted; None selects the only source that has the modalities of all
                files.
            batch: Samples per forward pass.

        Returns:
            One prediction per sample, in order.

        Raises:
            UserError: A file is missing, damaged, of an unsupported type, or of a modality that the source does not
                have; or the source is ambiguous.
        """
        return self.predict_samples([read_files(files) for files in samples], source, batch)

    def predict_samples(
        self, samples: Sequence[RawSample], source: str | None = None, batch: int = 32
    ) -> list[Prediction]:
        """Predict the classes of samples in memory.

        Args:
            samples: Samples from `sample_files.read_files` or `sample_files.sample_from_bytes`.
            source: See `predict`.
            batch: See `predict`.

        Returns:
            One prediction per sample, in order.

        Raises:
            UserError: A field is damaged or of a modality that the source does not have, or the source is ambiguous.
        """
        chosen = self.source(source, {FIELD_MODALITY[field] for sample in samples for field in sample.fields})
        predictions: list[Prediction] = []
        for chunk in (samples[start : start + batch] for start in range(0, len(samples), batch)):
            decoded = [self.decode(sample, chosen) for sample in chunk]
            rows = self.probabilities(*self.stack(decoded, chosen), chosen)
            predictions += [
                Prediction(
                    sample.shard,
                    tuple(modality for modality in chosen.modalities if modality in arrays),
                    chosen.shown_classes,
                    row,
                )
                for sample, arrays, row in zip(chunk, decoded, rows, strict=True)
            ]
        return predictions

    def source(self, name: str | None, modalities: set[str] | None = None) -> SourceConfig:
        """Return one of the sources that the model was trained on.

        Args:
            name: Name of the source; None selects the only one with the modalities.
            modalities: Modalities that the source must have; for video, a source of audio is enough.

        Raises:
            UserError: No source matches, or several do.
        """
        sources = self.config.sources
        names = ", ".join(source.name for source in sources)
        if name is not None:
            found = [source for source in sources if source.name == name]
            if not found:
                raise UserError(f"source is '{name}', which the model does not have; choose one of {names}")
            return found[0]
        needed = modalities or set()
        found = [source for source in sources if all(_takes(source, modality) for modality in needed)]
        if not found:
            raise UserError(
                f"no source of the model has {' and '.join(sorted(needed))}; it was trained on "
                + ", ".join(f"{source.name} ({', '.join(source.modalities)})" for source in sources)
            )
        if len(found) > 1:
            raise UserError(
                f"source is not set and several match; choose one of {', '.join(one.name for one in found)}"
            )
        return found[0]

    def inputs(self, source: SourceConfig) -> dict[str, ModalityInput]:
        """Return the input specification of each modality of a source.

        Args:
            source: One of the model's sources.
        """
        return self.config.inputs(source)

    def decode(self, sample: RawSample, source: SourceConfig) -> Arrays:
        """Decode the modalities of a source from a sample, as in evaluation.

        Args:
            sample: The sample, encoded.
            source: One of the model's sources.

        Returns:
            Modality -> array, at least one.

        Raises:
            UserError: A field cannot be decoded, or the sample has none of the source's modalities.
        """
        inputs = self.inputs(source)
        # Randomness is a function of the key, so a file always has the same choice of points.
        try:
            arrays = decode_sample(sample, inputs, evaluation_randomness(sample.key), self.config.data.limits)
        except SampleError as error:
            raise UserError(f"{sample.shard}: {error}") from error
        if not arrays:
            raise UserError(f"{sample.shard}: {lacks_modalities(source)}")
        return arrays

    def stack(
        self, decoded: Sequence[Arrays], source: SourceConfig
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Stack decoded samples into the arguments of the model.

        Args:
            decoded: B samples from `decode`.
            source: The source that they were decoded for.

        Returns:
            Modality -> (B, *array_shape), zeros where a sample lacks it, and modality -> (B,) bool on the CPU, whether
            it has it.
        """
        arrays, present = {}, {}
        for modality, spec in self.inputs(source).items():
            stacked = np.zeros((len(decoded), *spec.array_shape), spec.array_dtype)
            for row, sample in enumerate(decoded):
                if modality in sample:
                    stacked[row] = sample[modality]
            arrays[modality] = torch.from_numpy(stacked).to(self.device)
            present[modality] = torch.tensor([modality in sample for sample in decoded])
        return arrays, present

    @torch.no_grad()
    def logits_and_latents(
        self, arrays: Mapping[str, Tensor], present: Mapping[str, Tensor], source: SourceConfig
    ) -> tuple[Tensor, Tensor]:
        """Run the model in the precision of its training.

        Args:
            arrays: Modality -> (B, *array_shape), as from `stack`.
            present: Modality -> (B,) bool, as from `stack`; a modality without an entry is present everywhere.
            source: Source whose head computes the logits.

        Returns:
            Logits (B, classes) and latents (B, N, D), fp32 on the device.
        """
        with autocast(self.device, self.config.train.precision):
            logits, latents = self.model.logits_and_latents(arrays, present, source.name)
        # Autocast in bf16 returns bf16, which is too coarse for probabilities.
        return logits.float(), latents.float()

    def probabilities(
        self, arrays: Mapping[str, Tensor], present: Mapping[str, Tensor], source: SourceConfig
    ) -> np.ndarray:
        """Return the probability of each class.

        Args:
            arrays: Modality -> (B, *array_shape), as from `stack`.
            present: Modality -> (B,) bool, as from `stack`.
            source: Source whose classes are predicted.

        Returns:
            (B, classes) fp32.
        """
        logits, _ = self.logits_and_latents(arrays, present, source)
        return np.asarray(probabilities_of(logits, source.task).cpu())


def load_model(path: str | PathLike[str], device: str = "cpu") -> TrainedModel:
    """Load a trained model; the implementation of `perceiver_dist.load`.

    Args:
        path: Path or URI of a run, of a checkpoint, or of an exported model.
        device: Device to run on, as torch names it.

    Raises:
        UserError: There is no trained model at the path, or it is damaged.
    """
    return TrainedModel(find_model(str(path)), device)


def probabilities_of(logits: Tensor, task: str) -> Tensor:
    """Return the probability of each class.

    Args:
        logits: (B, classes).
        task: softmax or multilabel.

    Returns:
        (B, classes).
    """
    return logits.softmax(1) if task == "softmax" else logits.sigmoid()


def lacks_modalities(source: SourceConfig) -> str:
    """Return the error for a sample that has none of a source's modalities.

    Args:
        source: The source.
    """
    return f"has none of the modalities of source '{source.name}' ({', '.join(source.modalities)})"


def _takes(source: SourceConfig, modality: str) -> bool:
    # A video file may have a sound track, which a source of audio can use.
    return modality in source.modalities or (modality == "video" and "audio" in source.modalities)


def _check_weights(model: Perceiver, weights: Mapping[str, Tensor], place: str) -> None:
    """Check that weights match a model.

    Raises:
        UserError: A weight is missing, unexpected, or of another shape.
    """
    expected = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        name = min(name for name, _ in set(expected.items()) ^ set(found.items()))
        raise UserError(
            f"{place}: '{name}' has shape {found.get(name, 'none')}, but its configuration expects "
            f"{expected.get(name, 'none')}; weights and config.yaml belong to different models"
        )
