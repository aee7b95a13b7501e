"""A trained model as one object: files go in, classes with their probabilities come out.

Decoding is part of the object and is the evaluation's own: the centre in time, the whole picture, seeded points.
Nobody has to know how the model was fed, so nobody can get it wrong. Nothing here needs Ray, DeepSpeed or MLflow.
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
from perceiver_dist.inference.sample_files import Files, read_files
from perceiver_dist.modalities import ModalityInput
from perceiver_dist.model.perceiver import Perceiver
from perceiver_dist.model.precision import autocast
from pipelines.augment.randomness import evaluation_randomness
from pipelines.decode import FIELD_MODALITY
from pipelines.decode.sample import Arrays, decode_sample
from pipelines.errors import SampleError
from pipelines.shards.sample_reader import RawSample
from pipelines.shards.source import SourceConfig


class Answer(NamedTuple):
    """A class and how sure the model is of it.

    Attributes:
        label: Name of the class, or its number where the source has no names.
        probability: 0 to 1. For softmax those of all classes add up to 1; for multilabel each stands for itself.
    """

    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What the model says of one sample.

    Attributes:
        name: The sample's file, the first if it has several.
        modalities: What the model saw of it.
        class_names: Names of the classes.
        probabilities: (classes,) fp32.
    """

    name: str
    modalities: tuple[str, ...]
    class_names: Sequence[str]
    probabilities: np.ndarray

    def top(self, count: int = 5) -> list[Answer]:
        """Return the likeliest classes, the likeliest first.

        Args:
            count: How many; all if there are fewer.
        """
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [Answer(self.class_names[index], float(self.probabilities[index])) for index in order]


class TrainedModel:
    """A trained Perceiver with the configuration that it was trained with.

    Args:
        stored: Where weights and configuration are.
        device: Where it runs.
        weights: All weights by name, fp32 of any shape, if they were read before; None to read them.

    Attributes:
        stored: Where weights and configuration are.
        model: The module, in evaluation mode.
        device: Where it runs.

    Raises:
        UserError: The weights are damaged, or are not those of the configuration.
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
        _check_weights(self.model, weights, stored.place)
        self.model.load_state_dict(weights)
        self.model.to(self.device).eval()

    @property
    def config(self) -> RunConfig:
        """The configuration that it was trained with."""
        return self.stored.config

    def predict(
        self, samples: Sequence[Files], source: str | None = None, batch: int = 32
    ) -> list[Prediction]:
        """Say what files show.

        Args:
            samples: Each a file, or several files of one sample: at most one for every modality.
            source: Whose classes to tell apart; None for the only source that sees all the files.
            batch: Samples that are looked at together.

        Returns:
            A prediction for each sample, in order.

        Raises:
            UserError: A file is missing, of unknown kind, damaged, or of a modality that the source does not see; or
                several sources could be meant.
        """
        return self.predict_read([read_files(files) for files in samples], source, batch)

    def predict_read(
        self, samples: Sequence[RawSample], source: str | None = None, batch: int = 32
    ) -> list[Prediction]:
        """Say what samples show whose bytes are there already.

        Args:
            samples: Each from `sample_files.read_files` or `sample_files.sample_of`.
            source: As for `predict`.
            batch: As for `predict`.

        Returns:
            A prediction for each sample, in order.

        Raises:
            UserError: A field is damaged, or of a modality that the source does not see; or several sources could be
                meant.
        """
        chosen = self.source(source, {FIELD_MODALITY[field] for sample in samples for field in sample.fields})
        predictions: list[Prediction] = []
        for some in (samples[start : start + batch] for start in range(0, len(samples), batch)):
            decoded = [self.decode(sample, chosen) for sample in some]
            rows = self.probabilities(*self.stack(decoded, chosen), chosen)
            predictions += [
                Prediction(
                    sample.shard,
                    tuple(modality for modality in chosen.modalities if modality in arrays),
                    chosen.shown_classes,
                    row,
                )
                for sample, arrays, row in zip(some, decoded, rows, strict=True)
            ]
        return predictions

    def source(self, name: str | None, modalities: set[str] | None = None) -> SourceConfig:
        """Return one of the sources that the model was trained on.

        Args:
            name: Its name; None for the only one.
            modalities: What it has to see; of a video the sound suffices.

        Raises:
            UserError: There is no such source, or several could be meant.
        """
        sources = self.config.sources
        if name is not None:
            found = [source for source in sources if source.name == name]
        else:
            found = [source for source in sources if all(_sees(source, one) for one in modalities or set())]
        names = ", ".join(source.name for source in sources)
        if not found and name is None:
            raise UserError(
                f"no source of the model sees {' and '.join(sorted(modalities or set()))}; it was trained on "
                + ", ".join(f"{source.name} ({', '.join(source.modalities)})" for source in sources)
            )
        if len(found) != 1:
            what = "several could be meant" if name is None else f"there is none called '{name}'"
            raise UserError(f"which source's classes to tell apart: {what}; name one of {names}")
        return found[0]

    def inputs(self, source: SourceConfig) -> dict[str, ModalityInput]:
        """Return what each modality of a source is decoded to.

        Args:
            source: One of the model's sources.
        """
        return self.config.inputs(source)

    def decode(self, sample: RawSample, source: SourceConfig) -> Arrays:
        """Decode what the model sees of a sample, as in evaluation.

        Args:
            sample: The bytes of its fields.
            source: One of the model's sources.

        Returns:
            Modality -> array, at least one.

        Raises:
            UserError: A field cannot be decoded, or there is nothing that the source sees.
        """
        inputs = self.inputs(source)
        try:
            arrays = decode_sample(sample, inputs, evaluation_randomness(sample.key), self.config.data.limits)
        except SampleError as error:
            raise UserError(f"{sample.shard}: {error}") from error
        if not arrays:
            raise UserError(f"{sample.shard}: {sees_nothing(source)}")
        return arrays

    def stack(
        self, decoded: Sequence[Arrays], source: SourceConfig
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return decoded samples as the model's arguments: arrays, zeros where missing, and what is present.

        Args:
            decoded: B samples from `decode`.
            source: The source that they were decoded for.

        Returns:
            Modality -> (B, *array_shape), and modality -> (B,) bool.
        """
        arrays, present = {}, {}
        for modality, spec in self.inputs(source).items():
            stacked = np.zeros((len(decoded), *spec.array_shape), spec.array_dtype)
            for row, sample in enumerate(decoded):
                if modality in sample:
                    stacked[row] = sample[modality]
            arrays[modality] = torch.from_numpy(stacked).to(self.device)
            present[modality] = torch.tensor([modality in sample for sample in decoded], device=self.device)
        return arrays, present

    @torch.no_grad()
    def logits_and_latents(
        self, arrays: Mapping[str, Tensor], present: Mapping[str, Tensor], source: SourceConfig
    ) -> tuple[Tensor, Tensor]:
        """Run the model, in the precision that it was trained in.

        Args:
            arrays: As from `stack`.
            present: As from `stack`.
            source: Whose classes.

        Returns:
            (B, classes) and (B, N, D), fp32 on the device.
        """
        with autocast(self.device, self.config.train.precision):
            logits, latents = self.model.logits_and_latents(arrays, present, source.name)
        return logits.float(), latents.float()

    def probabilities(
        self, arrays: Mapping[str, Tensor], present: Mapping[str, Tensor], source: SourceConfig
    ) -> np.ndarray:
        """Return how likely each class is.

        Args:
            arrays: From `stack`.
            present: From `stack`.
            source: Whose classes.

        Returns:
            (B, classes) fp32.
        """
        logits, _ = self.logits_and_latents(arrays, present, source)
        return np.asarray(probabilities_of(logits, source.task).cpu())


def load_model(place: str | PathLike[str], device: str = "cpu") -> TrainedModel:
    """Load a trained model with everything that belongs to it; what `perceiver_dist.load` is made of.

    Args:
        place: Path or URI of a run, of a checkpoint, or of an exported model.
        device: Where it runs, as torch names it.

    Raises:
        UserError: There is no trained model, or it is damaged.
    """
    return TrainedModel(find_model(str(place)), device)


def probabilities_of(logits: Tensor, task: str) -> Tensor:
    """Return how likely each class is.

    Args:
        logits: (B, classes).
        task: softmax or multilabel.

    Returns:
        (B, classes).
    """
    return logits.softmax(1) if task == "softmax" else logits.sigmoid()


def sees_nothing(source: SourceConfig) -> str:
    """Return why a source says nothing of a sample without any of its modalities.

    Args:
        source: The source.
    """
    return f"holds nothing that source '{source.name}' sees ({', '.join(source.modalities)})"


def _sees(source: SourceConfig, modality: str) -> bool:
    return modality in source.modalities or (modality == "video" and "audio" in source.modalities)


def _check_weights(model: Perceiver, weights: Mapping[str, Tensor], place: str) -> None:
    """Make sure that weights belong to a model.

    Raises:
        UserError: A weight is missing, left over, or of another shape.
    """
    expected = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        name = min(name for name, _ in set(expected.items()) ^ set(found.items()))
        raise UserError(
            f"{place}: '{name}' has shape {found.get(name, 'none')}, its configuration says "
            f"{expected.get(name, 'none')}; weights and config.yaml are of different models"
        )
