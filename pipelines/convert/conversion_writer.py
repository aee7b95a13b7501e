"""Parallel writer of a conversion: one Ray task per shard; a stopped conversion resumes with the missing shards."""

import json
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from perceiver_dist.errors import UserError
from pipelines.convert.conversion import Conversion, Part
from pipelines.shards.shard_writer import write_shard
from pipelines.storage.files import (
    absolute_uri,
    join,
    list_folder,
    read_text,
    write_chunks,
    write_text,
)
from pipelines.storage.retry import is_local

RECORD = "conversion.json"
"""File beside the shards that records which conversion they belong to."""
CLASSES = "classes.json"
"""File beside the shards with the class names, in the order of their numbers."""
_CHUNK = 1 << 24
"""Bytes read at a time for an upload: large enough for few requests, small beside the memory of a node."""


def write_conversion(conversion: Conversion, on_progress: Callable[[int, int], None]) -> None:
    """Write the missing shards, then classes.json, the names of the labels 0, 1, ...

    Ray tasks write the shards. On several nodes, the files and the folder must have the same path on every node.
    A shard is written atomically.

    Args:
        conversion: What to write.
        on_progress: Called with the number of existing shards and of all shards: once before the first shard is
            written, and after each.

    Raises:
        UserError: The folder holds shards of another conversion, or a file cannot be read.
        OSError: The storage fails.
    """
    _claim(conversion)
    existing = list_folder(conversion.out)
    missing = [part for part in conversion.parts if part.name not in existing]
    done = len(conversion.parts) - len(missing)
    on_progress(done, len(conversion.parts))
    for _ in _in_parallel(missing, absolute_uri(conversion.out)):
        done += 1
        on_progress(done, len(conversion.parts))
    # Last: a folder without classes.json is an incomplete conversion.
    names = conversion.source.class_names
    write_text(join(conversion.out, CLASSES), json.dumps(names, ensure_ascii=False, indent=1) + "\n")


def write_part(part: Part, out: str) -> None:
    """Read the samples of one shard and write it.

    Args:
        part: The shard.
        out: Path or URI of its folder.

    Raises:
        UserError: A source file cannot be read.
        OSError: The storage fails.
    """
    samples = (item.sample() for item in part.items)
    if is_local(out):
        folder = Path(out.removeprefix("file://"))
        folder.mkdir(parents=True, exist_ok=True)
        write_shard(samples, folder / part.name)
        return
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / part.name
        write_shard(samples, local)
        # An object store shows a file only once it is complete, so no rename is needed.
        with local.open("rb") as file:
            write_chunks(join(out, part.name), iter(lambda: file.read(_CHUNK), b""))


def _claim(conversion: Conversion) -> None:
    """Check that the folder is empty or belongs to this conversion, and record that it does.

    Raises:
        UserError: The folder belongs to another conversion.
    """
    record = read_text(join(conversion.out, RECORD))
    if record is None:
        shards = sorted(name for name in list_folder(conversion.out) if name.endswith(".tar"))
        if shards:
            raise UserError(
                f"{conversion.out}: already holds {shards[0]}, of no recorded conversion; choose another --out"
            )
        entry = {"fingerprint": conversion.fingerprint, "shards": len(conversion.parts)}
        write_text(join(conversion.out, RECORD), json.dumps(entry) + "\n")
    elif json.loads(record)["fingerprint"] != conversion.fingerprint:
        raise UserError(
            f"{conversion.out}: holds shards of another conversion (other files, options or order); choose another "
            "--out, or delete this folder"
        )


def _in_parallel(parts: list[Part], out: str) -> Iterator[None]:
    """Yield once per shard written.

    Two tasks per CPU are in flight: every CPU has its next task waiting, and after an error few run to their end.

    Raises:
        UserError: A source file cannot be read, or the storage fails.
    """
    # Two retries are for lost nodes. An error of `write_part` itself is not retried.
    task: Any = ray.remote(write_part).options(scheduling_strategy="SPREAD", max_retries=2)
    cpus: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call] # untyped in Ray
    max_running = 2 * int(cpus.get("CPU", 1))
    remaining = iter(parts)
    running: list[Any] = []
    while True:
        running += [task.remote(part, out) for part in islice(remaining, max_running - len(running))]
        if not running:
            return
        [finished], running = ray.wait(running)
        try:
            ray.get(finished)
        except RayTaskError as error:
            cause = error.cause
            raise (UserError(str(cause)) if isinstance(cause, UserError | OSError) else error) from None
        yield
