"""Export job: `python jobs/export.py folder|onnx|torch|mlflow ...`."""

from collections.abc import Callable, Sequence

from jsonargparse import ArgumentParser

from perceiver_dist.config.command_line import run_job
from perceiver_dist.config.subcommands import parse_arguments, subcommand_parser
from perceiver_dist.export.mlflow_model import export_mlflow
from perceiver_dist.export.model_folder import export_folder
from perceiver_dist.export.onnx_file import export_onnx
from perceiver_dist.export.torch_file import export_torch

FORMS: dict[str, Callable[..., str]] = {
    "folder": export_folder,
    "onnx": export_onnx,
    "torch": export_torch,
    "mlflow": export_mlflow,
}


def build_parser() -> ArgumentParser:
    """Return the command line parser: one subcommand per format, with the options of its function."""
    return subcommand_parser("Export a trained model.", "form", FORMS)


def main(arguments: Sequence[str]) -> int:
    """Export, and print one line about the result.

    Args:
        arguments: Command line without the program name.

    Returns:
        Exit status: 0.

    Raises:
        UserError: An option or the model is invalid.
    """
    parsed = parse_arguments(build_parser(), arguments)
    print(FORMS[parsed.form](**parsed[parsed.form].as_dict()))
    return 0


if __name__ == "__main__":
    run_job(main)
