"""Evaluate a trained model on every sample of some shards: `python jobs/evaluate.py --model runs/NAME ...`."""

from collections.abc import Sequence

from jsonargparse import ArgumentParser
from rich.console import Console

from perceiver_dist.command_line import run_job
from perceiver_dist.inference.options import EvaluationOptions
from perceiver_dist.subcommands import options_parser, parse_arguments


def build_parser() -> ArgumentParser:
    """Return the job's parser."""
    return options_parser("Evaluate a trained model on every sample of some shards.", EvaluationOptions)


def main(arguments: Sequence[str]) -> int:
    """Evaluate, write the report, record it in MLflow, and print a table.

    Args:
        arguments: The command line without the program's name.

    Returns:
        Exit status: 0.

    Raises:
        UserError: An option, the model or the data is not as it must be.
    """
    options = EvaluationOptions(**parse_arguments(build_parser(), arguments).as_dict())
    from perceiver_dist.inference.evaluation import evaluate_model
    from perceiver_dist.inference.evaluation_record import record_evaluation
    from perceiver_dist.inference.evaluation_report import write_report
    from perceiver_dist.progress import result_table

    console = Console(highlight=False)
    evaluation = evaluate_model(options, console)
    files = write_report(evaluation, options.attention)
    places = {"report": evaluation.out, "MLflow run": record_evaluation(evaluation, files)}
    console.print(result_table(evaluation.metrics, places))
    return 0


if __name__ == "__main__":
    run_job(main)
