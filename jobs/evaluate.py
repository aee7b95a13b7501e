"""Evaluate a trained model on every sample of some shards: `python jobs/evaluate.py --model runs/NAME ...`."""

from collections.abc import Sequence

from jsonargparse import ArgumentParser
from rich.console import Console

from perceiver_dist.config.command_line import run_job
from perceiver_dist.config.subcommands import options_parser, parse_arguments
from perceiver_dist.inference.inference_options import EvaluationOptions


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
    from perceiver_dist.display.progress import result_table
    from perceiver_dist.inference.evaluation_report import write_report
    from perceiver_dist.inference.evaluation_tracking import record_evaluation
    from perceiver_dist.inference.model_evaluation import evaluate_model

    console = Console(highlight=False)
    evaluation = evaluate_model(options, console)
    files = write_report(evaluation, options.attention)
    places = {"report": evaluation.out, "MLflow run": record_evaluation(evaluation, files)}
    console.print(result_table(evaluation.metrics, places))
    return 0


if __name__ == "__main__":
    run_job(main)
