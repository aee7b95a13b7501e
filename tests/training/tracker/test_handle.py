"""The type of the tracker's handle against the actor itself."""

import inspect
from typing import Any, get_args, get_type_hints

from perceiver_dist.metrics.metric_totals import Scores
from perceiver_dist.training.tracker.actor import Tracker
from perceiver_dist.training.tracker.handle import TrackerHandle


def actor_signature(name: str) -> list[Any]:
    """The types of a method's arguments, in order, and of its result."""
    method = getattr(Tracker, name)
    hints = get_type_hints(method, localns={"Scores": Scores})
    arguments = [*inspect.signature(method).parameters][1:]
    # Ray adds an argument to the class's methods in a process that has started the actor.
    own = [argument for argument in arguments if argument != "_ray_trace_ctx"]
    return [hints[argument] for argument in own] + [hints["return"]]


def test_the_handle_has_the_methods_of_the_actor_with_their_types() -> None:
    found = {
        name: [*get_args(kind)[0], get_args(kind)[1]]
        for name, kind in get_type_hints(TrackerHandle, localns={"Scores": Scores}).items()
    }
    public = [name for name, _ in inspect.getmembers(Tracker, inspect.isfunction) if name[0] != "_"]
    assert found == {name: actor_signature(name) for name in public}
