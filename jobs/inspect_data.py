"""Inspect shards before training: `python jobs/inspect_data.py lint|info|preview --shards PATTERN ...`."""

import json as json_format
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Literal

from jsonargparse import ArgumentParser
from rich.console import Console

from perceiver_dist.config.command_line import run_job
from perceiver_dist.config.subcommands import parse_arguments, subcommand_parser
from perceiver_dist.errors import UserError

Task = Literal["softmax", "multilabel"]


def lint(
    shards: str,
    label: str = "cls",
    num_classes: int | None = None,
    task: Task = "softmax",
    out: str | None = None,
    storage_path: str = "runs",
) -> int:
    """Check every sample, and list the bad ones.

    Args:
        shards: Shards as in a source's train_shards: braces, globs, demo:NAME/PATTERN.
        label: Field of the label: cls, or json.KEY.
        num_classes: Number of classes; without it labels may be any number from 0.
        task: softmax (exactly one class per sample) or multilabel (any number).
        out: File for the bad samples, one line of JSON each, as in quarantine.jsonl of a run.
        storage_path: Folder of the runs, for indexes and rendered demo data; on a cluster, all nodes must reach it.

    Returns:
        Exit status: 0 if every sample is good, else 1.
    """
    from perceiver_dist.cluster.connect import start_ray
    from perceiver_dist.display.progress import LiveDisplay
    from perceiver_dist.inspection.inspection_tables import lint_lines
    from perceiver_dist.training.tracker.quarantine import Quarantine
    from pipelines.inspection.lint import lint as lint_shards
    from pipelines.inspection.sample_check import LabelRules
    from pipelines.inspection.shard_access import SOURCE, find_shards, index_folder
    from pipelines.storage.files import folder_of, write_text
    from pipelines.storage.write_check import check_writable

    rules = LabelRules(label, task, num_classes)
    if out:
        check_writable(folder_of(out), "--out")
    found = find_shards(shards, storage_path)
    with LiveDisplay(Console(stderr=True, highlight=False)) as view:
        start_ray(1, view.message)
        report = lint_shards(found, index_folder(storage_path), rules, view.show_line, view.message)
    for line in lint_lines(report):
        Console().print(line, soft_wrap=True)
    if out:
        quarantine = Quarantine()
        quarantine.add(SOURCE, None, report.bad)
        write_text(out, quarantine.text())
    return 1 if report.bad else 0


def info(
    shards: str,
    label: str = "cls",
    num_classes: int | None = None,
    task: Task = "softmax",
    samples: int = 1000,
    labels: int = 100_000,
    classes: str | None = None,
    json: bool = False,
    storage_path: str = "runs",
) -> int:
    """Count samples, fields, modalities and labels, and summarize sizes and lengths.

    Args:
        shards: Shards as in a source's train_shards: braces, globs, demo:NAME/PATTERN.
        label: Field of the label: cls, or json.KEY.
        num_classes: Number of classes, to count those without a sample too; by default the number of class names.
        task: softmax (exactly one class per sample) or multilabel (any number).
        samples: Max samples whose headers are read, drawn at random.
        labels: Max samples whose labels are read, drawn at random.
        classes: JSON file with the class names; by default classes.json beside the shards, as prepare_data.py writes.
        json: Print JSON instead of tables, with all classes.
        storage_path: Folder of the runs, for indexes and rendered demo data.

    Returns:
        Exit status: 0.
    """
    from perceiver_dist.inspection.class_names import find_class_names
    from perceiver_dist.inspection.inspection_tables import summary_tables
    from pipelines.inspection.sample_check import LabelRules
    from pipelines.inspection.shard_access import find_shards, index_folder, index_shards
    from pipelines.inspection.summary import summarise

    rules = LabelRules(label, task, num_classes)
    _require_positive(samples=samples, labels=labels)
    found = find_shards(shards, storage_path)
    names = find_class_names(classes, found, label, num_classes)
    rules = replace(rules, num_classes=num_classes or len(names.names) or None)
    index = index_shards(found, index_folder(storage_path))
    summary = summarise(index, rules, max_labels=labels, max_headers=samples)
    _print_remark(names.remark)
    if json:
        print(json_format.dumps({**asdict(summary), "class_names": names.names}, indent=2))
    else:
        Console(highlight=False).print(summary_tables(summary, names.names))
    return 0


def preview(
    shards: str,
    out: str,
    label: str = "cls",
    num_classes: int | None = None,
    task: Task = "softmax",
    classes: str | None = None,
    count: int = 24,
    seed: int = 0,
    storage_path: str = "runs",
) -> int:
    """Write an HTML page with random samples: images, audio, frames and points as they are decoded.

    Args:
        shards: Shards as in a source's train_shards: braces, globs, demo:NAME/PATTERN.
        out: The page to write, which needs no other file.
        label: Field of the label: cls, or json.KEY.
        num_classes: Number of classes; by default the number of class names.
        task: softmax (exactly one class per sample) or multilabel (any number).
        classes: JSON file with the class names; by default classes.json beside the shards, as prepare_data.py writes.
        count: Number of samples to show.
        seed: Seed of the draw.
        storage_path: Folder of the runs, for indexes and rendered demo data.

    Returns:
        Exit status: 0.
    """
    from perceiver_dist.inspection.class_names import find_class_names
    from perceiver_dist.inspection.preview_cards import draw_cards
    from perceiver_dist.inspection.preview_page import preview_page
    from pipelines.inspection.sample_check import LabelRules
    from pipelines.inspection.shard_access import find_shards, index_folder, index_shards
    from pipelines.storage.files import folder_of, write_text
    from pipelines.storage.write_check import check_writable

    _require_positive(count=count)
    check_writable(folder_of(out), "--out")
    rules = LabelRules(label, task, num_classes)
    found = find_shards(shards, storage_path)
    names = find_class_names(classes, found, label, num_classes)
    rules = replace(rules, num_classes=num_classes or len(names.names) or None)
    index = index_shards(found, index_folder(storage_path))
    cards = draw_cards(index, rules, names.names, count, seed)
    _print_remark(names.remark)
    write_text(out, preview_page(shards, index, cards, seed))
    print(f"{len(cards):,} samples: {out}")
    return 0


def _print_remark(remark: str) -> None:
    # On standard error, so that JSON on standard output stays valid.
    if remark:
        print(remark, file=sys.stderr)


def _require_positive(**counts: int) -> None:
    """Check numbers of samples.

    Raises:
        UserError: A number is below 1.
    """
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"--{name} is {count}, must be at least 1")


INSPECTIONS: dict[str, Callable[..., int]] = {"lint": lint, "info": info, "preview": preview}


def build_parser() -> ArgumentParser:
    """Return the parser of the job: a subcommand per function above."""
    return subcommand_parser("Inspect shards before training.", "look", INSPECTIONS)


def main(arguments: Sequence[str]) -> int:
    """Inspect shards, and print the result.

    Args:
        arguments: The command line without the program name.

    Returns:
        Exit status: 1 if `lint` found a bad shard or sample, else 0.

    Raises:
        UserError: An option is invalid, or a shard cannot be read.
    """
    parsed = parse_arguments(build_parser(), arguments)
    return INSPECTIONS[parsed.look](**parsed[parsed.look].as_dict())


if __name__ == "__main__":
    run_job(main)
