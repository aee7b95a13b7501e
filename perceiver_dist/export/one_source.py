"""The model of one source as a module that can be traced, and the proof that what was made of it computes the same."""

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
"""Arrays as decoded, and which samples have them, by modality."""

MAX_DIFFERENCE = 1e-4
_BATCHES = (1, 3)


class OneSource(nn.Module):
    """A Perceiver that answers for one of its sources.

    Args:
        model: The Perceiver.
        source: The source.
        output: What to give.
    """

    def __init__(self, model: Perceiver, source: SourceConfig, output: Output) -> None:
        super().__init__()
        self.model = model
        self.source = source
        self.output = output

    def forward(self, arrays: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Answer for a batch.

        Args:
            arrays: (B, *array_shape) by modality, as decoded.
            present: (B,) bool by modality: false where a sample has none, whose array counts for nothing.

        Returns:
            (B, classes) fp32.
        """
        logits: Tensor = self.model(arrays, present, self.source.name)
        return logits if self.output == "logits" else probabilities_of(logits, self.source.task)


def traceable(trained: TrainedModel, source: SourceConfig, output: Output) -> OneSource:
    """Return the model of one source in the form that tracers understand.

    Dense attention is plain tensor operations; the other ways to the same numbers are written for autograd. Heads and
    queries of other sources are left out.

    Args:
        trained: The model.
        source: One of its sources.
        output: What to give.
    """
    plain = replace(trained.config.model, cross_attention="dense")
    model = Perceiver(plain, {source.name: source.num_classes})
    weights = trained.model.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return OneSource(model, source, output).eval()


def random_inputs(trained: TrainedModel, source: SourceConfig, batch: int) -> Inputs:
    """Return a batch of noise in which modalities are missing at random; the same for the same batch size.

    Args:
        trained: The model.
        source: One of its sources.
        batch: Samples.
    """
    random = np.random.default_rng(batch)
    arrays, present = {}, {}
    for modality, spec in trained.inputs(source).items():
        dtype = np.dtype(spec.array_dtype)
        lowest, highest = (-1, 1) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        noise = random.uniform(lowest, highest, (batch, *spec.array_shape)).astype(dtype)
        arrays[modality] = torch.from_numpy(noise)
        present[modality] = torch.from_numpy(random.random(batch) < 0.7)
    return arrays, present


def input_names(source: SourceConfig) -> list[str]:
    """Return the names of a file's inputs: the arrays, then which samples have them.

    Args:
        source: The source.
    """
    return [*source.modalities, *(f"{modality}_present" for modality in source.modalities)]


def names_json(source: SourceConfig) -> str:
    """Return the names of a source's classes as a JSON list, for the file to carry.

    Args:
        source: The source.
    """
    return json.dumps(source.shown_classes, ensure_ascii=False)


def check_same(
    trained: TrainedModel, source: SourceConfig, output: Output, exported: Callable[[Inputs], np.ndarray]
) -> float:
    """Compare what was exported with the model, on batches of several sizes.

    Args:
        trained: The model.
        source: The source that was exported.
        output: What is given.
        exported: Computes (B, classes) for a batch.

    Returns:
        The largest difference.

    Raises:
        InternalError: It is larger than rounding explains.
    """
    reference = OneSource(trained.model, source, output)
    differences = []
    for batch in _BATCHES:
        inputs = random_inputs(trained, source, batch)
        with torch.no_grad():
            expected = reference(*inputs).numpy()
        differences.append(np.abs(exported(inputs) - expected).max())
    largest = float(np.max(differences))
    if not largest <= MAX_DIFFERENCE:
        raise InternalError(
            f"{output} of the exported model differ from the model's by up to {largest:.1e}, more than "
            f"{MAX_DIFFERENCE:.0e}: nothing was written; please report this with the model's config.yaml"
        )
    return largest
