"""Say what samples show: `python jobs/predict.py --model runs/NAME --files F ... | --shards PATTERN --out FOLDER`."""

import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser
from rich.console import Console

from perceiver_dist.config.command_line import EXIT_USAGE, run_job
from perceiver_dist.config.subcommands import options_parser, parse_arguments
from perceiver_dist.errors import UserError
from perceiver_dist.inference.inference_options import PredictionOptions

_WIDTH_OF_FILES = 160
"""Columns where the table does not go to a terminal, which says how many it has."""


def build_parser() -> ArgumentParser:
    """Return the job's parser."""
    parser = options_parser(
        "Say what samples show: of single files as a table, of shards as Parquet files.",
        PredictionOptions,
        skip=["embeddings"],
    )
    parser.add_argument(
        "--files", nargs="+", type=str, help="files in place of shards, each a sample; starts no Ray"
    )
    parser.add_argument(
        "--embeddings", action="store_true", help="store the mean of the latents of each sample as well"
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Predict, and print a table or where the predictions are.

    Args:
        arguments: The command line without the program's name.

    Returns:
        Exit status: 0; 2 if one of several files could not be used.

    Raises:
        UserError: An option, the model or the data is not as it must be.
    """
    parsed = parse_arguments(build_parser(), arguments).as_dict()
    files = parsed.pop("files")
    options = PredictionOptions(**parsed)
    console = Console(highlight=False)
    if files:
        return _predict_files(options, files, console)
    from perceiver_dist.inference.shard_prediction import predict_shards

    predicted = predict_shards(options, console)
    console.print(
        f"{predicted.samples:,} samples in {predicted.out}; of {predicted.bad:,} the column error says why there is "
        "no answer",
        soft_wrap=True,
    )
    return 0


def _predict_files(options: PredictionOptions, files: Sequence[str], console: Console) -> int:
    if options.shards or options.out or options.embeddings:
        raise UserError("--files prints a table; leave out --shards, --out and --embeddings, or --files")
    import torch

    from perceiver_dist import load
    from perceiver_dist.inference.loose_files import files_table, predict_files

    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    model = load(options.model, automatic if options.device == "auto" else options.device)
    answers = predict_files(model, files, options.source)
    if not console.is_terminal:
        console.width = _WIDTH_OF_FILES
    if answers.predictions:
        console.print(files_table(answers.predictions, options.top))
    for error in answers.errors:
        sys.stderr.write(f"error: {error}\n")
    return EXIT_USAGE if answers.errors else 0


if __name__ == "__main__":
    run_job(main)
