"""One source's model as a file of torch.export, which torch loads without this project."""

import torch
from torch.export import Dim, ExportedProgram

from perceiver_dist.checkpoint.stored_model import find_model
from perceiver_dist.export.atomic_output import atomic_file
from perceiver_dist.export.model_folder import CLASSES
from perceiver_dist.export.one_source import Output, check_same, names_json, random_inputs, traceable
from perceiver_dist.inference.trained_model import TrainedModel
from pipelines.shards.source import SourceConfig


def export_torch(model: str, out: str, source: str | None = None, output: Output = "probabilities") -> str:
    """Make a file of torch.export of the model of one source, and compare it with the model.

    Args:
        model: A run such as runs/NAME (its newest checkpoint), one of its checkpoints, or an exported folder.
        out: Path or URI of a new file, such as model.pt2.
        source: Whose classes to tell apart; null for the only one.
        output: What the file's program gives.

    Returns:
        What was made, in one line.

    Raises:
        UserError: There is no whole model or no such source, or something is at the new place already.
        InternalError: The file's results differ from the model's.
    """
    trained = TrainedModel(find_model(model))
    chosen = trained.source(source)
    with atomic_file(out) as file:
        program = trace(trained, chosen, output)
        torch.export.save(program, file, extra_files={CLASSES: names_json(chosen)})
        loaded = torch.export.load(file).module()
        largest = check_same(trained, chosen, output, lambda inputs: loaded(*inputs).detach().numpy())
    return (
        f"exported source {chosen.name} of {trained.stored.place} to {out}; largest difference {largest:.1e}"
    )


def trace(trained: TrainedModel, source: SourceConfig, output: Output) -> ExportedProgram:
    """Return the graph of one source's model; the first axis of its inputs is a batch of any size.

    Args:
        trained: The model.
        source: One of its sources.
        output: What the graph gives.
    """
    # Two samples, since torch.export would take a batch of one for a constant.
    inputs = random_inputs(trained, source, batch=2)
    batch = Dim("batch")
    with torch.no_grad():
        return torch.export.export(
            traceable(trained, source, output),
            inputs,
            dynamic_shapes=tuple({name: {0: batch} for name in part} for part in inputs),
        )
