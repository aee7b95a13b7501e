"""Processes of this machine, as /proc shows them."""

from pathlib import Path


def started_at(pid: int) -> int | None:
    """Return when a process started, in ticks since the machine did; None if it has ended.

    Args:
        pid: Its process number.
    """
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def is_stopped(pid: int) -> bool:
    """Return whether a process lives but is stopped, as by SIGSTOP or a debugger.

    Args:
        pid: Its process number.
    """
    fields = _stat(pid)
    return fields is not None and fields[0] in "Tt"


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat after the name, which may contain anything: the state, then numbers."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
