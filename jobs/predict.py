"""Prediction job: `python jobs/predict.py --model runs/NAME --files F ... | --shards PATTERN --out FOLDER`."""

import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser
from rich.console import Console

from perceiver_dist.config.command_line import EXIT_USAGE, run_job
from perceiver_dist.config.subcommands import options_parser, parse_arguments
from perceiver_dist.errors import UserError
from perceiver_dist.inference.inference_options import PredictionOptions
from perceiver_dist.standard_output import lasting_output

_TABLE_WIDTH = 160
"""Columns of a table that does not go to a terminal; rich's default of 80 would wrap long paths."""


def build_parser() -> ArgumentParser:
    """Return the command line parser."""
    parser = options_parser(
        "Predict the classes of samples: single files, as a table, or shards, as Parquet files.",
        PredictionOptions,
        skip=["embeddings"],  # added below as a flag that takes no value
    )
    parser.add_argument(
        "--files",
        nargs="+",
        type=str,
        help="files to predict instead of shards, one sample each; does not start Ray",
    )
    parser.add_argument(
        "--embeddings", action="store_true", help="also store the mean of the latents of each sample"
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Predict, and print a table of the files or the location of the Parquet files.

    Args:
        arguments: Command line without the program name.

    Returns:
        Exit status: 0; 2 if one of the files could not be used.

    Raises:
        UserError: An option, the model or the data is invalid.
    """
    parsed = parse_arguments(build_parser(), arguments).as_dict()
    files = parsed.pop("files")
    options = PredictionOptions(**parsed)
    console = Console(highlight=False)
    if files:
        return _predict_files(options, files, console)
    # Imported where it is needed, since files are predicted without Ray.
    from perceiver_dist.inference.shard_prediction import predict_shards

    with lasting_output():
        summary = predict_shards(options, console)
        unusable = f"{summary.bad:,} without a prediction (see the column error)"
        console.print(f"{summary.samples:,} samples in {summary.out}; {unusable}", soft_wrap=True)
    return 0


def _predict_files(options: PredictionOptions, files: Sequence[str], console: Console) -> int:
    if options.shards or options.out or options.embeddings:
        raise UserError(
            "--files cannot be combined with --shards, --out or --embeddings; leave out one or the other"
        )
    import torch

    from perceiver_dist import load
    from perceiver_dist.inference.loose_files import files_table, predict_files

    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    model = load(options.model, automatic if options.device == "auto" else options.device)
    results = predict_files(model, files, options.source)
    if not console.is_terminal:
        console.width = _TABLE_WIDTH
    if results.predictions:
        console.print(files_table(results.predictions, options.top))
    for error in results.errors:
        sys.stderr.write(f"error: {error}\n")
    return EXIT_USAGE if results.errors else 0


if __name__ == "__main__":
    run_job(main)
