"""One source's model as an ONNX file, for runtimes without Python; it is run once before it is handed over."""

import logging
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import torch
from torch.export import ExportedProgram

from perceiver_dist.checkpoint.stored_model import find_model
from perceiver_dist.errors import UserError
from perceiver_dist.export.atomic_output import atomic_file
from perceiver_dist.export.one_source import Inputs, Output, check_same, input_names, names_json
from perceiver_dist.export.torch_file import trace
from perceiver_dist.inference.trained_model import TrainedModel

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MAX_BYTES = 2**31
"""An ONNX file that holds its weights itself is smaller than 2 GiB."""


def export_onnx(model: str, out: str, source: str | None = None, output: Output = "probabilities") -> str:
    """Make an ONNX file of the model of one source, and compare it with the model in onnxruntime.

    Inputs are, for each modality of the source, the decoded array under its name and `NAME_present`, bool. The first
    axis of all is the batch, of any size.

    Args:
        model: A run such as runs/NAME (its newest checkpoint), one of its checkpoints, or an exported folder.
        out: Path or URI of a new file, such as model.onnx.
        source: Whose classes to tell apart; null for the only one.
        output: Name and meaning of the file's output.

    Returns:
        What was made, in one line.

    Raises:
        UserError: Packages are missing, there is no whole model or no such source, the file would be too large, or
            something is at the new place already.
        InternalError: The file's results differ from the model's.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX files need {', '.join(missing)}, not installed here: .venv/bin/pip install -c constraints.txt "
            "-e '.[export]'"
        )
    trained = TrainedModel(find_model(model))
    chosen = trained.source(source)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells everybody that there is no torchvision
    with atomic_file(out) as file:
        program = trace(trained, chosen, output)
        _check_size(program)
        torch.onnx.export(
            program,
            f=file,
            input_names=input_names(chosen),
            output_names=[output],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        onnx = import_module("onnx")
        made = onnx.load(file)
        onnx.helper.set_model_props(made, {"classes": names_json(chosen)})
        onnx.save(made, file)
        session = import_module("onnxruntime").InferenceSession(str(file), providers=["CPUExecutionProvider"])

        def run(inputs: Inputs) -> np.ndarray:
            tensors = [tensor for part in inputs for tensor in part.values()]
            feed = {name: tensor.numpy() for name, tensor in zip(input_names(chosen), tensors, strict=True)}
            return session.run([output], feed)[0]

        largest = check_same(trained, chosen, output, run)
    return (
        f"exported source {chosen.name} of {trained.stored.place} to {out}; largest difference {largest:.1e}"
    )


def _check_size(program: ExportedProgram) -> None:
    """Make sure that a graph's arrays fit into one file.

    Raises:
        UserError: They do not.
    """
    arrays = (*program.state_dict.values(), *program.constants.values())
    size = sum(array.nbytes for array in arrays if isinstance(array, torch.Tensor))
    if size >= MAX_BYTES:
        raise UserError(
            f"the model has {size / 2**30:.1f} GiB of weights and positions, an ONNX file holds less than "
            f"{MAX_BYTES / 2**30:.0f}; export it with `torch` or `folder`"
        )
