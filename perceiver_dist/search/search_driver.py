"""Driver of a search: from the configuration to the report."""

import signal
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from rich.console import Console

from perceiver_dist.checkpoint.lease import Lease, LeaseLostError
from perceiver_dist.checkpoint.run_folder import CONFIG
from perceiver_dist.cluster.capacity import device_type, wait_for_capacity
from perceiver_dist.cluster.room_watch import RoomWatch
from perceiver_dist.cluster.termination import TerminationWatch
from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.flatten import flatten
from perceiver_dist.data.field_check import check_fields
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
from perceiver_dist.search.trial_resources import (
    keep_data_actors_here,
    max_concurrent_trials,
    start_ray_for_trials,
)
from perceiver_dist.tracking.mlflow_environment import MlflowPlace
from perceiver_dist.training.prepare import place_of, resolve, with_demo_data
from pipelines.storage.files import copy_file, join, read_text, write_text
from pipelines.storage.write_check import check_writable

BEST = "best.yaml"

_MAY_CHANGE = ("search.trials", "search.max_concurrent", "tracking.", "train.max_failures")
"""Options that may change when a search resumes: no score and no candidate depends on them."""


@dataclass(frozen=True)
class SearchOutcome:
    """How a search ended.

    Attributes:
        record: Its record. Trials of an interrupted search are still "running".
        interrupted: "interrupted" by Ctrl-C or an error, "terminated" by SIGTERM, "" if all trials have ended.
    """

    record: SearchRecord
    interrupted: Literal["", "interrupted", "terminated"]


def run_search(config: SearchRunConfig, console: Console, promote: str | None = None) -> SearchOutcome:
    """Run or resume a search, and write search.json, best.yaml and a report to its folder.

    Args:
        config: Configuration of the search; an existing `search.name` resumes that search.
        console: Console for the display.
        promote: NAME@ALIAS under which to register the best trial's model; None to register none.

    Returns:
        Its record, and what has interrupted it.

    Raises:
        UserError: Something that the user can fix, such as an option, found before any trial starts; or another job
            runs the search; or the best trial's model cannot be registered.
    """
    # Checked here, not at the end of a long search.
    model_name = parse_model_name(promote) if promote else None
    config, place = _resolved(config), place_of(config)
    folder = join(config.storage.path, config.search.name)
    check_metric(config.search.metric, config)
    check_writable(config.storage.path, "storage.path")
    report = partial(console.print, markup=False, soft_wrap=True)
    with Lease(folder, f"search '{config.search.name}'", "search.name", report) as lease:
        return _search(config, place, folder, lease, console, model_name)


def _search(
    config: SearchRunConfig,
    place: MlflowPlace,
    folder: str,
    lease: Lease,
    console: Console,
    model_name: tuple[str, str] | None,
) -> SearchOutcome:
    record = load_record(join(folder, RECORD)) or SearchRecord()
    check_same_search(config, folder)
    device = "cuda" if torch.cuda.is_available() and config.train.device != "cpu" else "cpu"
    work_left = _check_candidates(config, record, device)
    show = partial(console.print, markup=False, soft_wrap=True)
    show(f"search {config.search.name}: preparing data\n{place.description}")
    config = with_demo_data(config)
    shards = list_shards(config)
    if work_left:
        start_ray_for_trials(config, show)
        wait_for_capacity(config, f"search '{config.search.name}'", show)
        keep_data_actors_here()
        # Trials may run on GPUs that this machine does not have; the device decides what cross-attention costs.
        device = device_type(config)
        _index(config, shards, console)
    lease.confirm()
    write_text(join(folder, CONFIG), to_yaml(config))
    record.options = asdict(config.search)
    # Before the MLflow run is opened, so that a search killed in between finds that run by the record's identity.
    record.save(join(folder, RECORD))
    candidates = Candidates(config.search, config.training, device)
    tracking = SearchTracking(config, record, folder)
    terminated = False
    if work_left:
        terminated = _run(config, record, candidates, folder, lease, tracking, console)
    lease.confirm()
    best = record.best
    best_yaml = to_yaml(replace(candidates.training_of(best.values), storage=config.storage)) if best else ""
    unsent = _write_results(record, config, best_yaml, folder, tracking)
    console.print(final_table(record))
    if unsent:
        show(
            f"MLflow at {config.tracking.uri} is unavailable: {unsent} records wait on disk; run the same command "
            "again to send them"
        )
    interrupted = is_interrupted(record)
    if interrupted:
        console.print("interrupted: run the same command again to resume the search", markup=False)
    if model_name:
        version = promote_best(record, best_yaml, config.tracking.uri or "", *model_name)
        console.print(f"registered as models:/{'@'.join(model_name)}, version {version}", markup=False)
    return SearchOutcome(
        record, "terminated" if terminated and interrupted else "interrupted" if interrupted else ""
    )


def _index(config: SearchRunConfig, shards: dict[str, list[str]], console: Console) -> None:
    """Index the shards, and show what their samples lack.

    Raises:
        UserError: A shard is missing or damaged, or no sample has a modality or the label of its source.
    """
    for warning in check_fields(config, index_sources(config, shards)):
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)


def is_interrupted(record: SearchRecord) -> bool:
    """Return whether a search has trials that have not ended.

    Args:
        record: Record of the search, after `run_search`.
    """
    return any(trial.state == "running" for trial in record.trials)


def check_same_search(config: SearchRunConfig, folder: str) -> None:
    """Check that old and new trials of a resumed search are comparable.

    Args:
        config: Resolved configuration of this start.
        folder: Path or URI of the search's folder; without a configuration in it there is nothing to compare.

    Raises:
        UserError: An option on which candidates or scores depend has changed.
    """
    before = read_text(join(folder, CONFIG))
    if before is None:
        return
    old, new = _comparable(yaml.safe_load(before)), _comparable(yaml.safe_load(to_yaml(config)))
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name) and not name.startswith(_MAY_CHANGE):
            raise UserError(
                f"{name} is {new.get(name)}, but search '{config.search.name}' was started with {old.get(name)}; "
                "old and new trials would not be comparable: keep the old value, or choose another search.name"
            )


def _resolved(config: SearchRunConfig) -> SearchRunConfig:
    if config.storage.run_name is not None:
        raise UserError(
            f"storage.run_name is '{config.storage.run_name}', but a search names its runs itself; remove it, and set "
            "search.name instead"
        )
    resolved = resolve(config)
    storage = replace(resolved.storage, run_name=None)
    # Trials have storage paths of their own, but share the index.
    return replace(resolved, storage=storage, data=replace(resolved.data, index_path=resolved.index_folder))


def _check_candidates(config: SearchRunConfig, record: SearchRecord, device: str) -> bool:
    """Draw the next candidates on a copy of the record, so that errors in the space are found before anything starts.

    Returns:
        Whether the search has trials to start or to resume.
    """
    drawn = deepcopy(record)
    candidates = Candidates(config.search, config.training, device)
    more = False
    # At least two: the first may be the baseline, which is always valid.
    while len(drawn.trials) < max(len(record.trials) + 1, 2) and (trial := candidates.draw(drawn)):
        drawn.trials.append(trial)
        more = True
    return more or any(trial.state == "running" for trial in record.trials)


def _run(
    config: SearchRunConfig,
    record: SearchRecord,
    candidates: Candidates,
    folder: str,
    lease: Lease,
    tracking: SearchTracking,
    console: Console,
) -> bool:
    """Run the trials until they have ended, or until Ctrl-C or SIGTERM.

    Returns:
        Whether SIGTERM has ended the search.

    Raises:
        KeyboardInterrupt: Ctrl-C, before Ray Tune handles it.
        LeaseLostError: Another job has taken over the search.
        UserError: Ray has ended.
    """
    interrupt = partial(signal.raise_signal, signal.SIGINT)  # Ray Tune ends its trials in order
    with (
        SearchDisplay(console) as display,
        RoomWatch(display.message),
        TerminationWatch(interrupt, lambda _: lease.loss) as termination,
    ):
        display.update(record, {})
        controller = SearchController(config, record, candidates, folder, tracking, display)
        try:
            run_trials(
                controller,
                partial(max_concurrent_trials, config),
                config.train.max_failures,
                folder,
                lease.fence,
            )
            if termination.reason is not None:  # Ray Tune keeps a KeyboardInterrupt to itself.
                raise KeyboardInterrupt
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(termination.reason, LeaseLostError):
                raise termination.reason from None
            interrupted = termination.reason is None and isinstance(error, KeyboardInterrupt)
            if interrupted and termination.requested:
                return True
            if interrupted:
                raise
            ended = termination.reason is not None or termination.ray_has_ended()
            if ended and termination.requested:
                return True
            if ended:
                raise UserError("Ray has ended; run the same command again to resume the search") from error
            raise
    return termination.requested


def _write_results(
    record: SearchRecord, config: SearchRunConfig, best_yaml: str, folder: str, tracking: SearchTracking
) -> int:
    """Write the results to the search's folder and its MLflow run; return the number of records not sent to MLflow."""
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
    """Return options by dotted name, in a form that is equal for two starts of the same search."""
    plain = dict(tree)
    plain["sources"] = {source["name"]: source for source in plain["sources"]}
    flat = flatten(plain)
    # Candidates depend on the order of the space, and the schedule of sources on the order of the sources.
    flat["the order of search.space"] = ", ".join(plain["search"]["space"])
    flat["the order of sources"] = ", ".join(plain["sources"])
    # The shards of a demo are "demo:..." in the configuration and a path once they are rendered.
    for name in flat:
        if name.endswith("_shards"):
            flat[name] = "/".join(flat[name].split("/")[-2:]).removeprefix("demo:")
    return flat
