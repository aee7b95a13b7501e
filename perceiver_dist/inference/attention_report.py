"""Attention figures of an evaluation, for evenly spaced held-out samples of a source."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from perceiver_dist.inference.attention_figure import attention_figure
from perceiver_dist.inference.trained_model import TrainedModel, probabilities_of
from perceiver_dist.model.observation.attention_maps import attention_maps
from pipelines.shards.shard_index import SourceIndex
from pipelines.shards.source import SourceConfig
from pipelines.units.plan import EvaluationPlan
from pipelines.units.unit_maker import Unit, UnitMaker


def draw_attention(
    model: TrainedModel, source: SourceConfig, index: SourceIndex, count: int, folder: Path
) -> list[Path]:
    """Draw the attention over samples that are evenly spaced in a source's shards; bad samples are skipped.

    Runs the model of this process, on its device, not the copies in the actor pool: a few samples do not need it.

    Args:
        model: The model.
        source: The source.
        index: Index of the source's shards.
        count: Max number of samples.
        folder: Folder for the PNGs.

    Returns:
        The PNGs.
    """
    files = []
    for number, unit in enumerate(_evenly_spaced(model, source, index, count)):
        files.append(folder / f"attention_{source.name}_{number:02d}.png")
        _draw(model, source, unit, files[-1])
    return files


def _evenly_spaced(
    model: TrainedModel, source: SourceConfig, index: SourceIndex, count: int
) -> Iterator[Unit]:
    """Yield units of one sample, without bad samples and samples that have none of the modalities."""
    # Units of one sample, so that a unit has the number of its sample.
    plan = EvaluationPlan(index.samples, unit_size=1, lanes=1)
    maker = UnitMaker(source, model.inputs(source), index, plan, model.config.data)
    for number in np.linspace(0, index.samples - 1, min(count, index.samples)).round().astype(int):
        unit = maker.make(int(number))
        if unit["valid"][0] and any(unit[f"{name}_present"][0] for name in source.modalities):
            yield unit


def _draw(model: TrainedModel, source: SourceConfig, unit: Unit, path: Path) -> None:
    present = {name: unit[name] for name in source.modalities if unit[f"{name}_present"][0]}
    arrays = {name: torch.from_numpy(array).to(model.device) for name, array in present.items()}
    # Without presence masks: `arrays` has the present modalities only.
    logits, _ = model.logits_and_latents(arrays, {}, source)
    probabilities = probabilities_of(logits, source.task)[0]
    best, names = int(probabilities.argmax()), source.shown_classes
    true = np.flatnonzero(unit["label"][0]) if source.task == "multilabel" else unit["label"]
    maps = [
        {name: weights[0].cpu().numpy() for name, weights in by_modality.items()}
        for by_modality in attention_maps(model.model, arrays, {})
    ]
    answer = f"answer: {names[best]} ({float(probabilities[best]):.0%})"
    title = f"{', '.join(names[label] for label in true) or 'none'}; {answer}"
    inputs = model.inputs(source)
    attention_figure({name: array[0] for name, array in present.items()}, inputs, maps, title, path)
