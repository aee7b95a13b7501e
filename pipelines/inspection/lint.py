"""Linter of shards: checks every sample in Ray tasks, on all CPUs of a cluster."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from perceiver_dist.errors import UserError
from pipelines.decode.sample import Decode, decode_sample
from pipelines.decode.sandbox import sandboxed_on_retry
from pipelines.errors import SampleError, ShardError
from pipelines.inspection.sample_check import LabelRules, find_bad_samples
from pipelines.shards.sample_reader import RawSample, read_samples
from pipelines.shards.shard_index import ShardSummary, SourceIndex, index_shard
from pipelines.storage.signatures import hide_signatures
from pipelines.units.unit_maker import BadSample

_MIN_TASKS = 64
"""Min number of tasks, so that every CPU of a small cluster gets some; `_MIN_SAMPLES` takes precedence."""
_MIN_SAMPLES, _MAX_SAMPLES = 16, 256
"""Samples per task: the min is worth the start of a task, the max bounds the work that a crashed task repeats."""
_SAMPLES_AT_ONCE = 16
"""Samples that a task holds in memory at a time; small ones that are neighbors are read with one request."""
_TASKS_IN_FLIGHT = 512
"""Max tasks submitted to Ray at a time: enough to make a cluster grow, and few enough to pass to `ray.wait` often."""


@dataclass(frozen=True)
class LintReport:
    """Result of checking every sample.

    Attributes:
        shards: Number of shards, including bad ones.
        samples: Number of samples in the readable shards.
        bad_shards: A record of each unreadable shard, without a key.
        bad_samples: A record of each bad sample, in the order of the samples.
    """

    shards: int
    samples: int
    bad_shards: list[BadSample]
    bad_samples: list[BadSample]

    @property
    def bad(self) -> list[BadSample]:
        """Bad shards, then bad samples."""
        return [*self.bad_shards, *self.bad_samples]


@dataclass
class ReasonGroup:
    """Bad samples whose reasons differ only in numbers and quoted text.

    Attributes:
        reason: The reason, with numbers as # and quoted text as '...' if they differ.
        samples: The samples, in order.
    """

    reason: str
    samples: list[BadSample] = field(default_factory=list)


def lint(
    shards: Sequence[str],
    index_folder: str,
    rules: LabelRules,
    show_line: Callable[[str], None],
    show_phase: Callable[[str], None],
    decode: Decode = decode_sample,
) -> LintReport:
    """Check every sample of every shard. Ray must be running.

    Args:
        shards: Paths or URIs.
        index_folder: Path or URI of the index folder, which every node can reach.
        rules: Requirements of a label.
        show_line: Shows one line of progress, in place of the one before.
        show_phase: Shows one line that stays: the result of indexing.
        decode: The decoder to check samples with.

    Returns:
        The bad shards and bad samples.

    Raises:
        ShardError: A shard is removed or changed meanwhile, or its storage fails.
    """
    indexed: list[ShardSummary] = []
    bad_shards: list[BadSample] = []
    for number, found in enumerate(_indexed(shards, index_folder), start=1):
        if isinstance(found, BadSample):
            bad_shards.append(found)
        else:
            indexed.append(found)
        line = f"{number:,} of {len(shards):,} shards indexed, {len(bad_shards):,} bad"
        # The last state stays, so that a log without a terminal does not end the phase with an earlier one.
        (show_line if number < len(shards) else show_phase)(line)
    index = SourceIndex(indexed)
    bad: dict[int, list[BadSample]] = {}
    checked = found_bad = 0
    for numbers, found_there in _checked(index, rules, decode):
        bad[numbers.start] = found_there
        checked, found_bad = checked + len(numbers), found_bad + len(found_there)
        show_line(f"{checked:,} of {index.samples:,} samples checked, {found_bad:,} bad")
    in_order = [sample for first in sorted(bad) for sample in bad[first]]
    return LintReport(len(shards), index.samples, bad_shards, in_order)


def _indexed(shards: Sequence[str], folder: str) -> Iterator[ShardSummary | BadSample]:
    """Index shards in Ray tasks, and yield the result of each, in order."""
    task: Any = ray.remote(_index_or_reason).options(scheduling_strategy="SPREAD")
    for start in range(0, len(shards), _TASKS_IN_FLIGHT):
        for reference in [task.remote(shard, folder) for shard in shards[start : start + _TASKS_IN_FLIGHT]]:
            yield ray.get(reference)


def _index_or_reason(shard: str, folder: str) -> ShardSummary | BadSample:
    try:
        return index_shard(shard, folder)
    except ShardError as error:
        shown = hide_signatures(shard)
        reason = str(error).removeprefix(f"shard {shown}: ")
        return BadSample.of(RawSample(shown, key="", fields={}), SampleError(reason))


def _checked(
    index: SourceIndex, rules: LabelRules, decode: Decode
) -> Iterator[tuple[range, list[BadSample]]]:
    """Check samples in Ray tasks, and yield ranges of sample numbers with their bad samples, in order of completion.

    Raises:
        ShardError: A shard is removed or changed meanwhile, or its storage fails.
    """
    # Unlimited retries, as for the read tasks of a training: a decoder may end the process of a first attempt.
    task: Any = ray.remote(_check_range).options(scheduling_strategy="SPREAD", max_retries=-1)
    shared = [ray.put(argument) for argument in (index, rules, decode)]
    size = min(max(index.samples // _MIN_TASKS, _MIN_SAMPLES), _MAX_SAMPLES)
    waiting = (range(start, min(start + size, index.samples)) for start in range(0, index.samples, size))
    running: dict[Any, range] = {}
    while True:
        while len(running) < _TASKS_IN_FLIGHT and (numbers := next(waiting, None)) is not None:
            running[task.remote(numbers, *shared)] = numbers
        if not running:
            return
        [done], _ = ray.wait(list(running), num_returns=1)
        try:
            yield running.pop(done), ray.get(done)
        except UserError as error:
            # Ray raises a subclass of the task's error and itself, whose text is the whole traceback.
            raise ShardError(str(getattr(error, "cause", error))) from None


def _check_range(numbers: range, index: SourceIndex, rules: LabelRules, decode: Decode) -> list[BadSample]:
    bad = []
    with sandboxed_on_retry(decode) as safe:
        for start in range(0, len(numbers), _SAMPLES_AT_ONCE):
            piece = numbers[start : start + _SAMPLES_AT_ONCE]
            bad += find_bad_samples(read_samples(index, piece, rules.wanted_fields), rules, safe)
    return bad


def group_by_reason(bad: Sequence[BadSample]) -> list[ReasonGroup]:
    """Group bad samples by reason. Reasons that differ only in numbers and quoted text are one group.

    Args:
        bad: The samples.

    Returns:
        The groups, the largest first.
    """
    groups: dict[str, ReasonGroup] = {}
    for sample in bad:
        pattern = re.sub(r"\d+(\.\d+)?", "#", re.sub(r"'[^']*'", "'...'", sample.reason))
        group = groups.setdefault(pattern, ReasonGroup(sample.reason))
        group.samples.append(sample)
        if sample.reason != group.reason:
            group.reason = pattern
    return sorted(groups.values(), key=lambda group: -len(group.samples))
