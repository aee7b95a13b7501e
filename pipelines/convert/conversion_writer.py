"""Writing a conversion on all CPUs of a Ray cluster, a shard at a time, and going on with it after a stop."""

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
    is_local,
    join,
    list_folder,
    read_text,
    write_chunks,
    write_text,
)

RECORD = "conversion.json"
"""Lies beside the shards and says which conversion they are of."""
CLASSES = "classes.json"
_CHUNK = 1 << 24


def write_conversion(conversion: Conversion, on_progress: Callable[[int, int], None]) -> None:
    """Write the shards that are not there yet, then classes.json, the names of the labels 0, 1, ...

    Shards are written by Ray tasks; with several nodes the files and the folder must be reachable from all of them by
    the same name. A shard is there whole or not at all.

    Args:
        conversion: What to write.
        on_progress: Called with the number of shards that are there, and of all.

    Raises:
        UserError: The folder holds shards of another conversion, or a file cannot be read.
        OSError: The storage refuses.
    """
    _claim(conversion)
    there = list_folder(conversion.out)
    missing = [part for part in conversion.parts if part.name not in there]
    done = len(conversion.parts) - len(missing)
    on_progress(done, len(conversion.parts))
    for _ in _in_parallel(missing, absolute_uri(conversion.out)):
        done += 1
        on_progress(done, len(conversion.parts))
    names = conversion.source.class_names
    write_text(join(conversion.out, CLASSES), json.dumps(names, ensure_ascii=False, indent=1) + "\n")


def write_part(part: Part, out: str) -> None:
    """Read the samples of one shard and write it.

    Args:
        part: The shard.
        out: Path or URI of its folder.

    Raises:
        UserError: A file cannot be read.
        OSError: The storage refuses.
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
        # An object store shows a file when it is whole.
        with local.open("rb") as file:
            write_chunks(join(out, part.name), iter(lambda: file.read(_CHUNK), b""))


def _claim(conversion: Conversion) -> None:
    """Make sure that the folder is new or of this conversion, and write down that it is.

    Raises:
        UserError: It is another one's.
    """
    record = read_text(join(conversion.out, RECORD))
    if record is None:
        shards = sorted(name for name in list_folder(conversion.out) if name.endswith(".tar"))
        if shards:
            raise UserError(
                f"{conversion.out}: holds {shards[0]} already, of no recorded conversion; name another folder as --out"
            )
        entry = {"fingerprint": conversion.fingerprint, "shards": len(conversion.parts)}
        write_text(join(conversion.out, RECORD), json.dumps(entry) + "\n")
    elif json.loads(record)["fingerprint"] != conversion.fingerprint:
        raise UserError(
            f"{conversion.out}: holds shards of other files or options, or in another order; name another folder as "
            "--out, or delete this one"
        )


def _in_parallel(parts: list[Part], out: str) -> Iterator[None]:
    """Yield each time that a shard was written; some more tasks than CPUs wait, and no more."""
    task: Any = ray.remote(write_part).options(scheduling_strategy="SPREAD", max_retries=2)
    cpus: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call] # Ray leaves it without types
    most = 2 * int(cpus.get("CPU", 1))
    remaining = iter(parts)
    running: list[Any] = []
    while True:
        running += [task.remote(part, out) for part in islice(remaining, most - len(running))]
        if not running:
            return
        [finished], running = ray.wait(running)
        try:
            ray.get(finished)
        except RayTaskError as error:
            cause = error.cause
            raise (UserError(str(cause)) if isinstance(cause, UserError | OSError) else error) from None
        yield
