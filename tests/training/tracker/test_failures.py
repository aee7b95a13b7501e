"""Classification and report of the exceptions that end a rank."""

from typing import Any

import pytest
import ray
import torch
from ray.exceptions import RayActorError

from perceiver_dist.errors import UserError
from perceiver_dist.training.liveness.rank_state import RankState
from perceiver_dist.training.tracker.failures import (
    errors_reported,
    failure_of,
    failures_reported,
    place_in,
)
from pipelines.shards.source import SourceConfig

STATE = RankState(1, 7, "training")


ANYTHING: dict[str, Any] = {"many": "many"}
"""A value of a wrong type, which no type checker sees."""


def raised(work: Any) -> TypeError:
    with pytest.raises(TypeError) as caught:
        work()
    return caught.value


def test_an_error_of_the_code_has_step_rank_and_place() -> None:
    failure = failure_of(
        raised(lambda: SourceConfig("a", "x", ["image"], num_classes=ANYTHING["many"])), STATE
    )
    assert failure.kind == "code"
    assert failure.line.startswith(
        "step 7: rank 1 raised while training: TypeError: '>=' not supported between instances of 'str' and 'int' "
        "(perceiver_dist/range_checks.py:"
    )
    assert "__post_init__" in failure.traceback


def test_a_failure_keeps_the_state_of_its_moment() -> None:
    state = RankState(0)
    failure = failure_of(ValueError(), state)
    state.enter("evaluating", 9)
    assert (failure.state.activity, failure.error) == ("starting", "ValueError")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (
            RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"),
            "peer",
        ),
        (torch.distributed.DistBackendError("ncclRemoteError: A call failed possibly due to a"), "peer"),
        (RuntimeError("[enforce fail] op.preamble.length <= op.nbytes. 8 vs 4"), "code"),
        (RayActorError(), "environment"),
        (OSError("No space left on device"), "environment"),
        (MemoryError(), "environment"),
        (KeyError("loss"), "code"),
    ],
)
def test_failures_are_classified(error: Exception, kind: str) -> None:
    assert failure_of(error, STATE).kind == kind


@pytest.mark.usefixtures("ray_cluster")
def test_the_exception_of_a_ray_task_replaces_rays_own_error() -> None:
    @ray.remote
    def task() -> SourceConfig:
        return SourceConfig("a", "x", ["image"], num_classes=ANYTHING["many"])

    failure = failure_of(raised(lambda: ray.get(task.remote())), STATE)
    assert (failure.kind, failure.error.partition(":")[0]) == ("code", "TypeError")
    assert failure.place.startswith("perceiver_dist/range_checks.py:")


def test_the_innermost_frame_is_used_if_none_is_of_the_project() -> None:
    text = '  File "/a/site-packages/perceiver_dist_of_others/x.py", line 3, in f\n  File "/b/c.py", line 4, in g\n'
    assert place_in(text) == "c.py:4"
    assert place_in("ValueError: no frames") == "no place known"


class _Method:
    def __init__(self, heard: list[Any]) -> None:
        self._heard = heard

    def remote(self, what: Any) -> Any:
        self._heard.append(what)
        return ray.put(None)


class _Tracker:
    """Records the calls to a tracker."""

    def __init__(self) -> None:
        self.stops: list[str] = []
        self.failures: list[Any] = []
        self.stop_for: Any = _Method(self.stops)
        self.rank_failed: Any = _Method(self.failures)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("fix it\nRay adds lines"), "fix it"),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "rank 1 is out of memory while training (CUDA out of memory)",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "rank 1 is out of memory while training",
        ),
    ],
)
def test_a_user_error_and_out_of_memory_end_the_run(error: Exception, line: str) -> None:
    tracker = _Tracker()
    with pytest.raises(type(error)), failures_reported(tracker, STATE):
        raise error
    assert tracker.stops[0].startswith(line)
    assert tracker.failures == []


@pytest.mark.usefixtures("ray_cluster")
def test_other_errors_are_reported_and_raised_again() -> None:
    tracker = _Tracker()
    with pytest.raises(KeyError), failures_reported(tracker, STATE):
        raise KeyError("loss")
    assert [failure.error for failure in tracker.failures] == ["KeyError: 'loss'"]


class _Record:
    """Has a method whose caller does not wait."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.lines: list[str] = []

    def keep_traceback(self, name: str, text: str) -> None:
        self.files[name] = text

    def report(self, line: str) -> None:
        self.lines.append(line)

    @errors_reported
    def trained(self, values: dict[str, float]) -> None:
        SourceConfig("a", "x", ["image"], num_classes=int(values["loss"]))


def test_an_error_in_a_call_without_a_waiting_caller_is_reported() -> None:
    record = _Record()
    with pytest.raises(KeyError):
        record.trained({})
    assert record.lines[0].startswith("the run's record has a gap: trained: KeyError: 'loss' (")
    assert record.files["tracker-trained"].splitlines()[-1] == "KeyError: 'loss'"
