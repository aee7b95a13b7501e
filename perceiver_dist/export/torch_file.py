"""Export of one source's model to a `torch.export` file, which torch loads without this project."""

import torch
from torch.export import Dim, ExportedProgram

from perceiver_dist.checkpoint.stored_model import find_model
from perceiver_dist.export.atomic_output import atomic_file
from perceiver_dist.export.model_folder import CLASSES
from perceiver_dist.export.one_source import (
    Output,
    check_outputs,
    class_names_json,
    random_inputs,
    traceable_model,
)
from perceiver_dist.inference.trained_model import TrainedModel
from pipelines.shards.source import SourceConfig


def export_torch(model: str, out: str, source: str | None = None, output: Output = "probabilities") -> str:
    """Export the model of one source to a `torch.export` file, and compare its outputs with the model's.

    Args:
        model: Path or URI of a run such as runs/NAME (its newest checkpoint), of a checkpoint, or of an exported
            folder.
        out: Path or URI of a new file, such as model.pt2.
        source: Source whose classes are predicted; null if the model has only one.
        output: Output of the exported program.

    Returns:
        One line about the result.

    Raises:
        UserError: The model or the source is missing, the model is damaged, or `out` exists already.
        InternalError: The file's outputs differ from the model's.
    """
    trained = TrainedModel(find_model(model))
    chosen = trained.source(source)
    with atomic_file(out) as file:
        program = trace(trained, chosen, output)
        torch.export.save(program, file, extra_files={CLASSES: class_names_json(chosen)})
        # Read back, so that the check covers the file and not only the graph in memory.
        loaded = torch.export.load(file).module()
        largest = check_outputs(trained, chosen, output, lambda inputs: loaded(*inputs).detach().numpy())
    return (
        f"exported source {chosen.name} of {trained.stored.place} to {out}; largest difference {largest:.1e}"
    )


def trace(trained: TrainedModel, source: SourceConfig, output: Output) -> ExportedProgram:
    """Trace the model of one source into a graph whose inputs have a batch axis of any size.

    Args:
        trained: The model.
        source: One of its sources.
        output: Output of the graph.
    """
    # Two samples, since torch.export specializes a dimension of size 1 to a constant.
    inputs = random_inputs(trained, source, batch=2)
    batch = Dim("batch")
    with torch.no_grad():
        return torch.export.export(
            traceable_model(trained, source, output),
            inputs,
            dynamic_shapes=tuple({name: {0: batch} for name in part} for part in inputs),
        )
