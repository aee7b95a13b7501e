"""A wait for room in words: what is needed, what is free, and who holds the rest."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ray

from perceiver_dist.cluster.ray_tables import (
    Reservation,
    job_names,
    nodes_being_added,
    reservations,
    this_job,
)
from perceiver_dist.cluster.resources import Bundle, shown_part, text_of, total_of

_REPEAT_SECONDS = 60.0
"""Time after which an unchanged line is shown again, so that a log shows that the job is alive."""
_HOLDERS_SHOWN = 4
"""Holders that a line names, the largest first; more would not fit on two lines of a screen."""
_LOOSE = "tasks and actors outside of placement groups"
"""Holder of what is neither free nor reserved: read tasks, and actors of other jobs."""


def purpose_of(one: Reservation) -> str:
    """Return what a placement group is for, such as "run 'demo' (workers)".

    Args:
        one: The placement group.
    """
    if not one.name and all(bundle.keys() == {"memory"} for bundle in one.bundles):
        return "the actor of a trial"  # Ray Tune gives its groups no name
    return one.name or f"placement group {one.id[:8]}"


class WaitLine:
    """Line on a wait for room, which is shown when something else is to be said, and once a minute.

    Args:
        start: How the line begins, such as "waiting for".
        report: Called with each line for the terminal.
    """

    def __init__(self, start: str, report: Callable[[str], None]) -> None:
        self._start = start
        self._report = report
        self._shown: object = None
        self._at = float("-inf")

    def show(self, bundles: Sequence[Bundle], known: Sequence[Reservation] | None = None) -> None:
        """Show what is waited for, if it is due.

        Args:
            bundles: What is needed.
            known: The placement groups of the cluster, if they have just been read.

        Raises:
            RayError: The cluster does not answer.
        """
        placed = [one for one in (reservations() if known is None else known) if one.placed]
        needed, nodes, coming = total_of(bundles), living_nodes(), nodes_being_added()
        held = _held(placed, list(needed))
        # Not what is free: it changes with every read task of another job.
        content, now = (needed, nodes, coming, held), time.monotonic()
        if content != self._shown or now - self._at >= _REPEAT_SECONDS:
            self._shown, self._at = content, now
            self._report(f"{self._start} {_missing(needed, nodes, coming, held)}")


def living_nodes() -> list[Bundle]:
    """Return all resources of each living node of the cluster."""
    nodes: Any = ray.nodes  # Ray's function has no types.
    return [node["Resources"] for node in nodes() if node["Alive"]]


def free_now(kinds: Iterable[str]) -> Bundle:
    """Return what nobody has reserved or uses, in total.

    Args:
        kinds: Names of resources.
    """
    available: Any = ray.available_resources  # Ray's function has no types.
    resources = available()
    return {name: resources.get(name, 0.0) for name in kinds}


def _missing(needed: Bundle, nodes: list[Bundle], coming: int, held: dict[str, Bundle]) -> str:
    """Return what is needed, and why it is not there."""
    free, total = free_now(needed), total_of(nodes)
    present = {name: total.get(name, 0.0) for name in needed}
    reserved = total_of(held.values())
    loose = {name: present[name] - free[name] - reserved.get(name, 0) for name in needed}
    holders = [(who, shown_part(amount, needed)) for who, amount in [*held.items(), (_LOOSE, loose)]]
    holders = sorted([one for one in holders if one[1]], key=lambda one: -max(one[1].values()))
    parts = [f"{text_of(needed)}; the cluster has {text_of(present)}, free: {text_of(free)}"]
    parts += [f"{who} holds {text_of(amount)}" for who, amount in holders[:_HOLDERS_SHOWN]]
    if len(holders) > _HOLDERS_SHOWN:
        parts.append(f"{len(holders) - _HOLDERS_SHOWN} others hold the rest")
    if coming:
        parts.append(f"{coming} {'node is' if coming == 1 else 'nodes are'} starting")
    elif any(present[name] < amount for name, amount in needed.items()):
        parts.append("the cluster has yet to grow")
    elif all(free[name] >= amount for name, amount in needed.items()) and len(nodes) > 1:
        parts.append("what is free is on different nodes")
    return "; ".join(parts)


def _held(placed: Sequence[Reservation], kinds: list[str]) -> dict[str, Bundle]:
    """Return how much of some kinds of resources is reserved, by who has it."""
    names, held = job_names(), dict[str, Bundle]()
    for one in placed:
        part = shown_part(total_of(one.bundles), kinds)
        if part:
            who = _holder(one, names)
            held[who] = total_of([held.get(who, {}), part])
    return held


def _holder(one: Reservation, names: dict[str, str]) -> str:
    """Return who holds a placement group: its run or trial by name, and its job if that is another."""
    foreign = "" if one.job == this_job() else f" of {names.get(one.job, f'job {one.job}')}"
    if one.abandoned:
        return f"nobody ({purpose_of(one)}{foreign}, which an actor that has ended has left behind)"
    return f"{purpose_of(one)}{foreign}"
