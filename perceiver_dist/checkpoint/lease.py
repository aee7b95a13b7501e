"""Lease on a folder: at most one job at a time writes to a run or to a search.

`lease.json` in the folder says which process holds it. It works on any storage, and without comparing the clocks of two
machines: the holder renews the file every 15 seconds, and who finds a lease of another machine watches it by its own
clock. A change means that the holder lives; a file that stays the same for a minute means that it does not. A holder on
the same machine is looked up among the processes instead, so that after a `kill -9` the same command continues at once.

Storages have no common operation that replaces a file only if it is the expected one. So the last of two that take a
lease at the same time holds it. The other finds out when it reads the file again: before it starts workers (`confirm`),
and at each renewal. That is also how a process that was stopped for minutes learns that it has been replaced. Other
processes of the job that write ask a `Fence` before they do.

A job deletes its lease when it ends, unless it had found one of another: that job may only have been stopped, and would
take a lease that is not there for its own. Then the file stays, and says that it is released.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from perceiver_dist.cluster.process_state import is_stopped, started_at
from perceiver_dist.errors import UserError
from pipelines.storage.files import (
    STORAGE_ERRORS,
    delete,
    join,
    list_folder,
    read_text,
    reason_of,
    write_text,
)
from pipelines.storage.retry import RETRY_SECONDS

LEASE = "lease.json"

_SECONDS_BETWEEN_RENEWALS = 15.0
"""Few requests to an object store (a read and a write each), and soon enough for a second job to learn that the first
one lives."""
_SECONDS_UNTIL_OVER = 60.0
"""Time without a renewal after which a lease is over: several renewals, since a storage may be slow or away."""
_SECONDS_BETWEEN_CHECKS = 5.0
"""How often a process that writes reads the lease: few requests, and far below the minute until a lease is over."""
_RETRY_SECONDS_AT_END = 10.0
"""How long a job that ends retries to give its lease back while the storage fails: another machine's then waits."""
_SECONDS_BETWEEN_LOOKS = 3.0
"""How often a job that waits reads the lease."""


class LeaseLostError(UserError):
    """Another job has taken the lease, so this one must not write to the folder any more."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lease.

    Attributes:
        id: Different for each lease.
        host: Its host's name.
        machine: Its booted machine and its namespace of processes: where `pid` means something.
        pid: Its process number.
        started: When the process started, in ticks since the machine's start, since process numbers are used again.
        since: When it took the lease, by its own clock.
        released: Whether it has given the lease back, and only its name stays.
    """

    id: str
    host: str
    machine: str
    pid: int
    started: int
    since: str
    released: bool = False

    @classmethod
    def this_process(cls) -> "Holder":
        """Return this process as the holder of a new lease."""
        return cls(
            id=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=started_at(os.getpid()) or 0,
            since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        )

    @property
    def is_here(self) -> bool:
        """Whether it is or was a process of this machine, as this process sees it."""
        return self.machine == _machine()

    @property
    def lives(self) -> bool:
        """Whether the process lives. Known only if it is here."""
        return started_at(self.pid) == self.started

    def __str__(self) -> str:
        """Return who it is, where and since when."""
        return f"process {self.pid} on {self.host} since {self.since}"


class Lease:
    """Context that holds the lease on a folder.

    Args:
        folder: Path or URI of the folder.
        what: What the folder is, for messages, such as "run 'x'".
        option: The option that names it, for messages.
        report: Called with a line for the screen before it waits.
        seconds_between_renewals: For tests.
        seconds_until_over: For tests.

    Raises:
        UserError: Another process that lives holds it.
    """

    def __init__(
        self,
        folder: str,
        what: str,
        option: str,
        report: Callable[[str], None],
        seconds_between_renewals: float = _SECONDS_BETWEEN_RENEWALS,
        seconds_until_over: float = _SECONDS_UNTIL_OVER,
    ) -> None:
        self._folder = folder
        self._file = join(folder, LEASE)
        self._what, self._option, self._report = what, option, report
        self._between_renewals, self._until_over = seconds_between_renewals, seconds_until_over
        self._me = Holder.this_process()
        self._renewals = 0
        self._lost: Holder | None = None
        self._follows_another = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> "Lease":
        """Take the lease, at once or when the one that is there turns out to be over.

        Raises:
            UserError: Another process that lives holds it, or the storage does not answer.
        """
        try:
            self._await_end_of_other()
            self._renew()
        except STORAGE_ERRORS as error:
            raise UserError(
                f"{self._file} cannot be read and written ({reason_of(error)}), so that nobody knows whether another "
                f"job writes to {self._what}; give this job access to it"
            ) from error
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the lease back, so that another machine need not wait for it."""
        self._ended.set()
        self._thread.join()
        # The next job takes a lease that could not be deleted once it is over.
        with suppress(*STORAGE_ERRORS):
            if self._found_other(_RETRY_SECONDS_AT_END) is not None:
                return
            if self._follows_another:
                # That one may come back, and would take a lease that is not there for its own.
                self._me = replace(self._me, released=True)
                self._renew(_RETRY_SECONDS_AT_END)
            else:
                delete(self._file, _RETRY_SECONDS_AT_END)
                # A job that was refused before it wrote anything leaves no folder. Other storages have no empty ones.
                if "://" not in self._folder and not list_folder(self._folder):
                    Path(self._folder).rmdir()

    def confirm(self) -> None:
        """Check that this process holds the lease.

        Raises:
            LeaseLostError: Another process does.
        """
        self._lost = self._lost or self._found_other()
        if self.loss is not None:
            raise self.loss

    @property
    def loss(self) -> LeaseLostError | None:
        """The error that says who has taken the lease; None as long as this process holds it, as far as it knows."""
        return None if self._lost is None else LeaseLostError(_lost_to(self._lost, self._what))

    @property
    def fence(self) -> "Fence":
        """The right to write, for other processes of this job."""
        return Fence(self._folder, self._me.id, self._what)

    def _await_end_of_other(self) -> None:
        """Return when no other process holds the lease.

        Raises:
            UserError: One that lives does.
        """
        found = read_text(self._file)
        if found is None:
            return
        self._follows_another = True
        holder = _parse(found)
        if holder is not None and holder.released:
            return
        # A process that is stopped, by SIGSTOP or a debugger, may never continue: it is watched like those elsewhere.
        if holder is not None and holder.is_here and not (holder.lives and is_stopped(holder.pid)):
            if holder.lives:
                raise self._refusal(holder, f"kill {holder.pid}")
            return
        who = holder or "an unknown process"
        self._report(
            f"{self._what} was last written by {who}; waiting {self._until_over:.0f} s to see whether that has ended"
        )
        waited_from = time.monotonic()
        while time.monotonic() - waited_from < self._until_over:
            time.sleep(min(_SECONDS_BETWEEN_LOOKS, self._between_renewals))
            now = read_text(self._file)
            if now is None:
                return
            if now != found:
                newer = _parse(now)
                if newer is not None and newer.released:
                    return
                raise self._refusal(newer or holder, "stop it there")

    def _refusal(self, holder: Holder | None, how: str) -> UserError:
        return UserError(
            f"{self._what} is being written by {holder or 'an unknown process'}; wait until that has ended, end it "
            f"({how}), or choose another {self._option}"
        )

    def _keep(self) -> None:
        """Renew the lease until its end or its loss."""
        while not self._ended.wait(self._between_renewals):
            looked_at = time.monotonic()
            # A storage that is away keeps others from taking the lease as well.
            with suppress(*STORAGE_ERRORS):
                self._lost = self._found_other(retry_seconds=0)
                if self._lost is not None:
                    return
                # If this process was stopped since it looked, it looks once more.
                if time.monotonic() - looked_at < self._until_over:
                    self._renew(retry_seconds=0)

    def _renew(self, retry_seconds: float = RETRY_SECONDS) -> None:
        self._renewals += 1
        content = {**asdict(self._me), "renewals": self._renewals}
        write_text(self._file, json.dumps(content, indent=1) + "\n", retry_seconds)

    def _found_other(self, retry_seconds: float = RETRY_SECONDS) -> Holder | None:
        return _other_holder(self._file, self._me.id, retry_seconds)


class Fence:
    """Right to write to a folder, for processes of a job that holds the lease on it, such as the tracker.

    It can be pickled. The lease is read at most every 5 seconds; and a process that was stopped reads it first of all,
    because its last look is older than that. Others take a lease only after a minute without a renewal.

    Args:
        folder: Path or URI of the folder.
        lease: Id of the job's lease.
        what: What the folder is, for messages, such as "run 'x'".
    """

    def __init__(self, folder: str, lease: str, what: str) -> None:
        self._file, self._lease, self._what = join(folder, LEASE), lease, what
        self._looked_at = float("-inf")

    def check(self) -> None:
        """Check that no other job has taken the lease.

        Raises:
            LeaseLostError: Another job has.
        """
        now = time.monotonic()
        if now - self._looked_at < _SECONDS_BETWEEN_CHECKS:
            return
        try:
            holder = _other_holder(self._file, self._lease, retry_seconds=0)
        except STORAGE_ERRORS:
            # Whoever cannot read here cannot write either. Nor may each message wait for a storage that is away.
            self._looked_at = time.monotonic()
            return
        if holder is not None:
            raise LeaseLostError(_lost_to(holder, self._what))
        self._looked_at = now


def _other_holder(file: str, lease: str, retry_seconds: float) -> Holder | None:
    """Return who holds a lease, if it is not `lease`. One that somebody deleted is still the job's."""
    found = read_text(file, retry_seconds)
    holder = _parse(found) if found is not None else None
    return holder if holder is not None and holder.id != lease else None


def _lost_to(holder: Holder, what: str) -> str:
    return (
        f"{what} was taken over by {holder}; this job ends without writing to it: it had been stopped or "
        "cut off, or both were started at the same moment"
    )


def _parse(content: str) -> Holder | None:
    """Return the holder that a lease names; None if it cannot be read."""
    try:
        fields = json.loads(content)
        del fields["renewals"]
        return Holder(**fields)
    except (ValueError, TypeError, KeyError):
        return None


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
