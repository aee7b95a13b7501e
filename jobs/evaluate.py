"""Evaluation job: `python jobs/evaluate.py --model runs/NAME ...`."""

from collections.abc import Sequence

from jsonargparse import ArgumentParser
from rich.console import Console

from perceiver_dist.config.command_line import run_job
from perceiver_dist.config.subcommands import options_parser, parse_arguments
from perceiver_dist.inference.inference_options import EvaluationOptions
from perceiver_dist.standard_output import lasting_output


def build_parser() -> ArgumentParser:
    """Return the command line parser."""
    return options_parser(
        "Evaluate a trained model on every sample of its held-out shards, or of others.", EvaluationOptions
    )


def main(arguments: Sequence[str]) -> int:
    """Evaluate, write the report, record it in MLflow, and print a table.

    Args:
        arguments: Command line without the program name.

    Returns:
        Exit status: 0.

    Raises:
        UserError: An option, the model or the data is invalid.
    """
    options = EvaluationOptions(**parse_arguments(build_parser(), arguments).as_dict())
    # Imported after the options are parsed: `--help` and a wrong option take no time for torch and Ray.
    from perceiver_dist.display.progress import result_table
    from perceiver_dist.inference.evaluation_report import write_report
    from perceiver_dist.inference.evaluation_tracking import record_evaluation
    from perceiver_dist.inference.model_evaluation import evaluate_model

    console = Console(highlight=False)
    with lasting_output():
        evaluation = evaluate_model(options, console)
        files = write_report(evaluation, options.attention)
        locations = {"report": evaluation.out, "MLflow run": record_evaluation(evaluation, files)}
        console.print(result_table(evaluation.metrics, locations))
    return 0


if __name__ == "__main__":
    run_job(main)
