"""Look at shards before a training: `python jobs/inspect_data.py lint|info|preview --shards PATTERN ...`."""

import json as json_format
from collections.abc import Callable, Sequence
from dataclasses import asdict
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
    """Read every sample, and list those that cannot be used.

    Args:
        shards: Shards as in a source's train_shards: braces, globs, demo:NAME/PATTERN.
        label: Field of the label: cls, or json.KEY.
        num_classes: Number of classes; without it labels may be any number from 0.
        task: softmax for exactly one class per sample, multilabel for any number.
        out: File to write a line of JSON to for each bad sample, as in a run's quarantine.jsonl.
        storage_path: Folder of the runs, in which indexes are kept and demo data is rendered; on a cluster one that
            all nodes can reach.

    Returns:
        Exit status: 0 if every sample can be used, else 1.
    """
    from perceiver_dist.cluster.connect import start_ray
    from perceiver_dist.display.progress import LiveDisplay
    from perceiver_dist.inspection.inspection_tables import lint_lines
    from perceiver_dist.training.tracker.quarantine import Quarantine
    from pipelines.inspection.lint import lint as lint_shards
    from pipelines.inspection.sample_check import LabelRules
    from pipelines.inspection.shard_access import SOURCE, find_shards, index_folder
    from pipelines.storage.files import check_writable, folder_of, write_text

    rules = LabelRules(label, task, num_classes)
    if out:
        check_writable(folder_of(out), "--out")
    found = find_shards(shards, storage_path)
    start_ray(cpus=1)
    with LiveDisplay(Console(stderr=True, highlight=False)) as view:
        report = lint_shards(found, index_folder(storage_path), rules, view.show_line)
    for line in lint_lines(report):
        Console().print(line, soft_wrap=True)
    if out:
        quarantine = Quarantine(None)
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
    json: bool = False,
    storage_path: str = "runs",
) -> int:
    """Count samples, fields, modalities and labels, and look at sizes and lengths.

    Args:
        shards: Shards as in a source's train_shards: braces, globs, demo:NAME/PATTERN.
        label: Field of the label: cls, or json.KEY.
        num_classes: Number of classes; with it those that have no sample are counted too.
        task: softmax for exactly one class per sample, multilabel for any number.
        samples: Samples whose headers are read, drawn at random.
        labels: Samples whose labels are read, drawn at random; all if there are not more.
        json: Print JSON in place of tables.
        storage_path: Folder of the runs, in which indexes are kept and demo data is rendered.

    Returns:
        Exit status: 0.
    """
    from perceiver_dist.inspection.inspection_tables import summary_tables
    from pipelines.inspection.sample_check import LabelRules
    from pipelines.inspection.shard_access import find_shards, index_folder, index_shards
    from pipelines.inspection.summary import summarise

    rules = LabelRules(label, task, num_classes)
    _require_positive(samples=samples, labels=labels)
    index = index_shards(find_shards(shards, storage_path), index_folder(storage_path))
    summary = summarise(index, rules, most_labels=labels, most_headers=samples)
    if json:
        print(json_format.dumps(asdict(summary), indent=2))
    else:
        Console(highlight=False).print(summary_tables(summary))
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
    """Write a page with random samples: pictures, sounds, frames and points as they are decoded.

    Args:
        shards: Shards as in a source's train_shards: braces, globs, demo:NAME/PATTERN.
        out: The page to write, which holds everything in itself.
        label: Field of the label: cls, or json.KEY.
        num_classes: Number of classes; by default as many as there are names.
        task: softmax for exactly one class per sample, multilabel for any number.
        classes: JSON file with the names of the classes, as jobs/prepare_data.py writes it beside shards.
        count: Samples to show.
        seed: Another seed draws other samples.
        storage_path: Folder of the runs, in which indexes are kept and demo data is rendered.

    Returns:
        Exit status: 0.

    Raises:
        UserError: There are not as many names as classes.
    """
    from perceiver_dist.inspection.preview_cards import draw_cards, read_class_names
    from perceiver_dist.inspection.preview_page import preview_page
    from pipelines.inspection.sample_check import LabelRules
    from pipelines.inspection.shard_access import find_shards, index_folder, index_shards
    from pipelines.storage.files import check_writable, folder_of, write_text

    _require_positive(count=count)
    check_writable(folder_of(out), "--out")
    names = read_class_names(classes) if classes else []
    if names and num_classes not in (None, len(names)):
        raise UserError(f"--num_classes is {num_classes}, but {classes} names {len(names)}; leave it out")
    rules = LabelRules(label, task, num_classes or len(names) or None)
    index = index_shards(find_shards(shards, storage_path), index_folder(storage_path))
    cards = draw_cards(index, rules, names, count, seed)
    write_text(out, preview_page(shards, index, cards, seed))
    print(f"{len(cards):,} samples: {out}")
    return 0


def _require_positive(**counts: int) -> None:
    """Check numbers of samples.

    Raises:
        UserError: One of them is below 1.
    """
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"--{name} is {count}, must be at least 1")


INSPECTIONS: dict[str, Callable[..., int]] = {"lint": lint, "info": info, "preview": preview}


def build_parser() -> ArgumentParser:
    """Return the job's parser: one subcommand for each function above."""
    return subcommand_parser("Look at shards before a training.", "look", INSPECTIONS)


def main(arguments: Sequence[str]) -> int:
    """Look, and show what is found.

    Args:
        arguments: The command line without the program's name.

    Returns:
        Exit status: 1 if `lint` found something bad, else 0.

    Raises:
        UserError: An option is not as it must be, or a shard cannot be read.
    """
    parsed = parse_arguments(build_parser(), arguments)
    return INSPECTIONS[parsed.look](**parsed[parsed.look].as_dict())


if __name__ == "__main__":
    run_job(main)
