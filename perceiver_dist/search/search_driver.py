"""A whole search, from configuration to report, as the process that starts it sees it."""

import tempfile
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from perceiver_dist.checkpoint.run_folder import CONFIG
from perceiver_dist.cluster.capacity import device_type, wait_for_capacity
from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.flatten import flatten
from perceiver_dist.data.shard_indexing import index_sources, list_shards
from perceiver_dist.errors import UserError
from perceiver_dist.export.mlflow_model import parse_model_name
from perceiver_dist.search.controller import RECORD, SearchController
from perceiver_dist.search.promote import promote_best
from perceiver_dist.search.ray_tune import run_trials
from perceiver_dist.search.report.search_console import SearchDisplay, final_table
from perceiver_dist.search.report.write_report import write_report
from perceiver_dist.search.search_tracking import SearchTracking
from perceiver_dist.search.strategy.candidates import Candidates
from perceiver_dist.search.study.objective import check_metric
from perceiver_dist.search.study.search_config import SearchRunConfig
from perceiver_dist.search.study.search_record import SearchRecord, load_record
from perceiver_dist.search.trial_resources import keep_data_actors_here, start_ray_for_trials, trials_at_once
from perceiver_dist.training.driver import resolve
from pipelines.demo.resolve import resolve_demo
from pipelines.storage.files import check_writable, copy_file, join, read_text, write_text

BEST = "best.yaml"

_MAY_CHANGE = ("search.trials", "search.max_concurrent", "tracking.", "train.max_failures")
"""Options that a search may go on with other values of: no score and no candidate depends on them."""


def run_search(config: SearchRunConfig, console: Console, promote: str | None = None) -> SearchRecord:
    """Search, and leave search.json, best.yaml and a report in the search's folder.

    Args:
        config: The configuration; a search's name that exists goes on with its trials.
        console: Where the search is shown.
        promote: NAME@ALIAS under which the best trial's model is registered, None to register none.

    Returns:
        The search's record; trials that are still "running" mean that it was interrupted.

    Raises:
        UserError: Something the user can mend, found before any trial starts.
    """
    model_name = parse_model_name(promote) if promote else None
    config = _resolved(config)
    folder = join(config.storage.path, config.search.name)
    check_metric(config.search.metric, config)
    check_writable(config.storage.path, "storage.path")
    record = load_record(join(folder, RECORD)) or SearchRecord()
    check_same_search(config, folder)
    device = "cuda" if torch.cuda.is_available() and config.train.device != "cpu" else "cpu"
    left = _check_candidates(config, record, device)
    console.print(f"search {config.search.name}: preparing data")
    config = replace(config, sources=[resolve_demo(source, config.storage.path) for source in config.sources])
    shards = list_shards(config)
    if left:
        start_ray_for_trials(config)
        wait_for_capacity(config, partial(console.print, markup=False, soft_wrap=True))
        keep_data_actors_here()
        device = device_type(config)
        index_sources(config, shards)
    write_text(join(folder, CONFIG), to_yaml(config))
    record.options = asdict(config.search)
    record.save(join(folder, RECORD))
    candidates = Candidates(config.search, config.training, device)
    tracking = SearchTracking(config, record, folder)
    if left:
        _run(config, record, candidates, folder, tracking, console)
    best = record.best
    best_yaml = to_yaml(replace(candidates.training_of(best.values), storage=config.storage)) if best else ""
    waiting = _finish(record, config, best_yaml, folder, tracking)
    console.print(final_table(record))
    if waiting:
        console.print(
            f"MLflow at {config.tracking.uri} is away: {waiting} records wait on disk; the same command delivers "
            "them when it is back",
            markup=False,
            soft_wrap=True,
        )
    if is_interrupted(record):
        console.print("interrupted: the same command goes on with the search", markup=False)
    if model_name:
        version = promote_best(record, best_yaml, config.tracking.uri or "", *model_name)
        console.print(f"registered as models:/{promote}, version {version}", markup=False)
    return record


def is_interrupted(record: SearchRecord) -> bool:
    """Return whether trials are left that have not ended.

    Args:
        record: The search, after `run_search`.
    """
    return any(trial.state == "running" for trial in record.trials)


def check_same_search(config: SearchRunConfig, folder: str) -> None:
    """Make sure that a search that goes on compares like with like.

    Args:
        config: The resolved configuration of this start.
        folder: The search's folder; nothing is checked if nothing is in it.

    Raises:
        UserError: An option that candidates or scores depend on has another value than before.
    """
    before = read_text(join(folder, CONFIG))
    if before is None:
        return
    old, new = _comparable(yaml.safe_load(before)), _comparable(yaml.safe_load(to_yaml(config)))
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name) and not name.startswith(_MAY_CHANGE):
            raise UserError(
                f"{name} is {new.get(name)}, but search '{config.search.name}' was started with {old.get(name)}; "
                "its trials could not be compared: keep it, or start another search.name"
            )


def _resolved(config: SearchRunConfig) -> SearchRunConfig:
    if config.storage.run_name is not None:
        raise UserError(
            f"storage.run_name is '{config.storage.run_name}'; a search names its runs itself: leave it out, and "
            "set search.name"
        )
    resolved: Any = resolve(config)
    storage = replace(resolved.storage, run_name=None)
    return replace(resolved, storage=storage, data=replace(resolved.data, index_path=resolved.index_folder))


def _check_candidates(config: SearchRunConfig, record: SearchRecord, device: str) -> bool:
    """Draw the first candidates, so that what is wrong with the space is found before anything starts.

    Returns:
        Whether anything is left to do.
    """
    drawn = deepcopy(record)
    candidates = Candidates(config.search, config.training, device)
    more = False
    while len(drawn.trials) < max(len(record.trials) + 1, 2) and (trial := candidates.draw(drawn)):
        drawn.trials.append(trial)
        more = True
    return more or any(trial.state == "running" for trial in record.trials)


def _run(
    config: SearchRunConfig,
    record: SearchRecord,
    candidates: Candidates,
    folder: str,
    tracking: SearchTracking,
    console: Console,
) -> None:
    with SearchDisplay(console) as display:
        display.update(record, {})
        progress = SearchController(config, record, candidates, folder, tracking, display)
        run_trials(progress, partial(trials_at_once, config), config.train.max_failures, folder)


def _finish(
    record: SearchRecord, config: SearchRunConfig, best_yaml: str, folder: str, tracking: SearchTracking
) -> int:
    """Write what came out, to the search's folder and to its MLflow run; return how many records MLflow lacks."""
    record.save(join(folder, RECORD))
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch)
        files = write_report(record, config.search, best_yaml, local)
        if best_yaml:
            (local / BEST).write_text(best_yaml)
            files = [*files, local / BEST]
        for file in files:
            copy_file(str(file), join(folder, file.name))
        record.save(str(local / RECORD))
        return tracking.close(
            record, [*files, local / RECORD], "KILLED" if is_interrupted(record) else "FINISHED"
        )


def _comparable(tree: Mapping[str, Any]) -> dict[str, str]:
    """Return options by dotted name; the shards of a demo are known by their last folder."""
    plain = dict(tree)
    plain["sources"] = {source["name"]: source for source in plain["sources"]}
    flat = flatten(plain)
    # Which candidates are drawn and which source a step learns from depend on the order too.
    flat["the order of search.space"] = ", ".join(plain["search"]["space"])
    flat["the order of sources"] = ", ".join(plain["sources"])
    for name in flat:
        if name.endswith("_shards"):
            flat[name] = "/".join(flat[name].split("/")[-2:]).removeprefix("demo:")
    return flat
