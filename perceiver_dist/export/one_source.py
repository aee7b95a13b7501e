"""Traceable module for one source of a model, and the check that its exported form computes the same outputs."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from perceiver_dist.errors import InternalError
from perceiver_dist.inference.trained_model import TrainedModel, probabilities_of
from perceiver_dist.model.perceiver import Perceiver
from pipelines.shards.source import SourceConfig

Output = Literal["probabilities", "logits"]
Inputs = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Arrays as decoded, and whether each sample has them, both by modality."""

MAX_DIFFERENCE = 1e-4
"""Max difference of an output: 100 times the usual rounding of fp32 (1e-6), and far below any error of the export."""
_BATCHES = (1, 3)
"""Batch sizes of the check: both differ from the traced size 2, and exporters treat a batch of 1 as a special case."""
_PRESENT_FRACTION = 0.7
"""Share of present modalities in random inputs, so that a batch has samples with and without each."""


class OneSource(nn.Module):
    """A Perceiver with the head of one source.

    Args:
        model: The Perceiver.
        source: The source.
        output: Output of the module, probabilities or logits.
    """

    def __init__(self, model: Perceiver, source: SourceConfig, output: Output) -> None:
        super().__init__()
        self.model = model
        self.source = source
        self.output = output

    def forward(self, arrays: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Compute the outputs of a batch.

        Args:
            arrays: Modality -> (B, *array_shape), as decoded.
            present: Modality -> (B,) bool; where it is false, the sample's array is ignored.

        Returns:
            (B, classes) fp32.
        """
        logits: Tensor = self.model(arrays, present, self.source.name)
        return logits if self.output == "logits" else probabilities_of(logits, self.source.task)


def traceable_model(trained: TrainedModel, source: SourceConfig, output: Output) -> OneSource:
    """Return a module for one source that `torch.export` can trace.

    It uses dense cross-attention, which is plain tensor operations; the factored and separable forms compute the same
    values with custom autograd functions. Heads and decoder queries of other sources are dropped.

    Args:
        trained: The model.
        source: One of its sources.
        output: Output of the module.
    """
    dense = replace(trained.config.model, cross_attention="dense")
    model = Perceiver(dense, {source.name: source.num_classes})
    weights = trained.model.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return OneSource(model, source, output).eval()


def random_inputs(trained: TrainedModel, source: SourceConfig, batch: int) -> Inputs:
    """Return a batch of noise in which modalities are missing at random, seeded with the batch size.

    Args:
        trained: The model.
        source: One of its sources.
        batch: Number of samples.
    """
    random = np.random.default_rng(batch)
    arrays, present = {}, {}
    for modality, spec in trained.inputs(source).items():
        dtype = np.dtype(spec.array_dtype)
        lowest, highest = (-1, 1) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        noise = random.uniform(lowest, highest, (batch, *spec.array_shape)).astype(dtype)
        arrays[modality] = torch.from_numpy(noise)
        present[modality] = torch.from_numpy(random.random(batch) < _PRESENT_FRACTION)
    return arrays, present


def input_names(source: SourceConfig) -> list[str]:
    """Return the input names of an exported file: the arrays, then their presence flags.

    Args:
        source: The source.
    """
    return [*source.modalities, *(f"{modality}_present" for modality in source.modalities)]


def class_names_json(source: SourceConfig) -> str:
    """Return the class names of a source as a JSON list, for the metadata of a file.

    Args:
        source: The source.
    """
    return json.dumps(source.shown_classes, ensure_ascii=False)


def check_outputs(
    trained: TrainedModel, source: SourceConfig, output: Output, exported: Callable[[Inputs], np.ndarray]
) -> float:
    """Compare an exported file with the model, on random batches of several sizes.

    Args:
        trained: The model.
        source: The exported source.
        output: Output of the file.
        exported: Runs the file: inputs of a batch -> (B, classes).

    Returns:
        The max difference.

    Raises:
        InternalError: The difference is larger than rounding explains.
    """
    reference = OneSource(trained.model, source, output)
    differences = []
    for batch in _BATCHES:
        inputs = random_inputs(trained, source, batch)
        with torch.no_grad():
            expected = reference(*inputs).numpy()
        differences.append(np.abs(exported(inputs) - expected).max())
    largest = float(np.max(differences))
    if not largest <= MAX_DIFFERENCE:  # also true for NaN
        raise InternalError(
            f"{output} of the exported model differ from the model's by up to {largest:.1e}, more than "
            f"{MAX_DIFFERENCE:.0e}: nothing was written; please report this with the model's config.yaml"
        )
    return largest
