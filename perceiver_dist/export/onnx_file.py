"""Export of one source's model to an ONNX file, for runtimes without Python."""

import logging
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import torch
from torch.export import ExportedProgram

from perceiver_dist.checkpoint.stored_model import find_model
from perceiver_dist.errors import UserError
from perceiver_dist.export.atomic_output import atomic_file
from perceiver_dist.export.one_source import Inputs, Output, check_outputs, class_names_json, input_names
from perceiver_dist.export.torch_file import trace
from perceiver_dist.inference.trained_model import TrainedModel

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MAX_BYTES = 2**31
"""Limit of protobuf, the format of an ONNX file, which here holds the weights too."""


def export_onnx(model: str, out: str, source: str | None = None, output: Output = "probabilities") -> str:
    """Export the model of one source to an ONNX file, and compare its outputs in onnxruntime with the model's.

    The inputs are, for each modality of the source, the decoded array under the modality's name and a bool
    `NAME_present`. The first axis of all of them is the batch, of any size.

    Args:
        model: Path or URI of a run such as runs/NAME (its newest checkpoint), of a checkpoint, or of an exported
            folder.
        out: Path or URI of a new file, such as model.onnx.
        source: Source whose classes are predicted; null if the model has only one.
        output: Output of the file, which is also its name there.

    Returns:
        One line about the result.

    Raises:
        UserError: A package, the model or the source is missing, the model is damaged or too large, or `out` exists
            already.
        InternalError: The file's outputs differ from the model's.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX export needs {', '.join(missing)}, not installed: run .venv/bin/pip install -c constraints.txt "
            "-e '.[export]'"
        )
    trained = TrainedModel(find_model(model))
    chosen = trained.source(source)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # hides the warning that torchvision is missing
    with atomic_file(out) as file:
        program = trace(trained, chosen, output)
        _check_size(program)
        torch.onnx.export(
            program,
            f=file,
            input_names=input_names(chosen),
            output_names=[output],
            dynamo=True,
            external_data=False,  # a single file, weights included
            verbose=False,
        )
        # Imported by name, since these packages are an optional extra.
        onnx = import_module("onnx")
        exported = onnx.load(file)
        onnx.helper.set_model_props(exported, {"classes": class_names_json(chosen)})
        onnx.save(exported, file)
        # The check runs on the file as saved, after its metadata was added.
        session = import_module("onnxruntime").InferenceSession(str(file), providers=["CPUExecutionProvider"])

        def run(inputs: Inputs) -> np.ndarray:
            tensors = [tensor for part in inputs for tensor in part.values()]
            feed = {name: tensor.numpy() for name, tensor in zip(input_names(chosen), tensors, strict=True)}
            return session.run([output], feed)[0]

        largest = check_outputs(trained, chosen, output, run)
    return (
        f"exported source {chosen.name} of {trained.stored.place} to {out}; largest difference {largest:.1e}"
    )


def _check_size(program: ExportedProgram) -> None:
    """Check that the arrays of a graph fit into one file.

    Raises:
        UserError: They are too large.
    """
    arrays = (*program.state_dict.values(), *program.constants.values())
    size = sum(array.nbytes for array in arrays if isinstance(array, torch.Tensor))
    if size >= MAX_BYTES:
        raise UserError(
            f"the model has {size / 2**30:.1f} GiB of weights and positions, an ONNX file holds less than "
            f"{MAX_BYTES / 2**30:.0f}; export it with `torch` or `folder`"
        )
