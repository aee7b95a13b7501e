"""What is said of an exception that ended a rank, and for what it is taken."""

from typing import Any

import pytest
import ray
import torch
from ray.exceptions import RayActorError

from perceiver_dist.errors import UserError
from perceiver_dist.training.tracker.failures import (
    RankState,
    errors_reported,
    failure_of,
    failures_reported,
    place_in,
)
from pipelines.shards.source import SourceConfig

STATE = RankState(1, 7, "training")


def raised(work: Any) -> TypeError:
    with pytest.raises(TypeError) as caught:
        work()
    return caught.value


def test_an_error_of_the_code_is_told_with_step_rank_and_place() -> None:
    failure = failure_of(raised(lambda: SourceConfig("a", "x", ["image"], num_classes="many")), STATE)
    assert failure.kind == "code"
    assert failure.line.startswith(
        "step 7: rank 1 raised while training: TypeError: '<' not supported between instances of 'str' and 'int' "
        "(pipelines/shards/source.py:"
    )
    assert "__post_init__" in failure.traceback


def test_the_state_is_that_of_the_moment() -> None:
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
def test_kinds(error: Exception, kind: str) -> None:
    assert failure_of(error, STATE).kind == kind


@pytest.mark.usefixtures("ray_cluster")
def test_what_a_ray_task_raised_is_told_in_place_of_rays_own_error() -> None:
    @ray.remote
    def task() -> SourceConfig:
        return SourceConfig("a", "x", ["image"], num_classes="many")

    failure = failure_of(raised(lambda: ray.get(task.remote())), STATE)
    assert (failure.kind, failure.error.partition(":")[0]) == ("code", "TypeError")
    assert failure.place.startswith("pipelines/shards/source.py:")


def test_without_a_frame_of_the_project_the_innermost_counts() -> None:
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
    """Hears what a tracker would."""

    def __init__(self) -> None:
        self.stops: list[str] = []
        self.failures: list[Any] = []
        self.stop_for, self.rank_failed = _Method(self.stops), _Method(self.failures)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("mend it\nRay adds lines"), "mend it"),
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
def test_what_the_user_can_mend_ends_the_run(error: Exception, line: str) -> None:
    tracker = _Tracker()
    with pytest.raises(type(error)), failures_reported(tracker, STATE):
        raise error
    assert tracker.stops[0].startswith(line)
    assert tracker.failures == []


@pytest.mark.usefixtures("ray_cluster")
def test_all_else_is_told_and_raised_again() -> None:
    tracker = _Tracker()
    with pytest.raises(KeyError), failures_reported(tracker, STATE):
        raise KeyError("loss")
    assert [failure.error for failure in tracker.failures] == ["KeyError: 'loss'"]


class _Record:
    """Has a method that nobody waits for."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.lines: list[str] = []

    def keep_traceback(self, name: str, text: str) -> None:
        self.files[name] = text

    def tell(self, line: str) -> None:
        self.lines.append(line)

    @errors_reported
    def trained(self, values: dict[str, float]) -> None:
        SourceConfig("a", "x", ["image"], num_classes=values["loss"])


def test_an_error_that_nobody_waits_for_is_told() -> None:
    record = _Record()
    with pytest.raises(KeyError):
        record.trained({})
    assert record.lines[0].startswith("the run's record has a gap: trained: KeyError: 'loss' (")
    assert record.files["tracker-trained"].splitlines()[-1] == "KeyError: 'loss'"
