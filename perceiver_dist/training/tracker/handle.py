"""The tracker actor as ranks, datasets and the driver hold it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from perceiver_dist.checkpoint.best_score import BestScore
from perceiver_dist.checkpoint.manifest import StoredFile, TrainingProgress
from perceiver_dist.checkpoint.retention import StartingPoint
from perceiver_dist.cluster.remote_method import RemoteMethod
from perceiver_dist.tracking.mlflow_store import RunStatus
from perceiver_dist.training.liveness.heartbeat import LivenessReceiver
from perceiver_dist.training.liveness.life import RunLife
from perceiver_dist.training.tracker.failures import FailureReceiver
from perceiver_dist.training.tracker.logged_metrics import StepMetrics
from perceiver_dist.training.tracker.status import TrainingStatus
from pipelines.units.unit_maker import BadSample

if TYPE_CHECKING:
    # Imports torch, which Ray Train's controller has no need to load.
    from perceiver_dist.metrics.metric_totals import Scores


class TrackerHandle(FailureReceiver, LivenessReceiver, Protocol):
    """Handle of the `Tracker` actor (`perceiver_dist/training/tracker/actor.py`), whose methods are described there.

    A test compares the names and types with the actor's.
    """

    begin_group: RemoteMethod[[int], None]
    bad_reasons: RemoteMethod[[str, int], list[tuple[str, int]]]
    check_fence: RemoteMethod[[], None]
    choose_starting_point: RemoteMethod[[], StartingPoint]
    close: RemoteMethod[[RunStatus, Mapping[str, object]], int]
    count_start: RemoteMethod[[], str]
    ends: RemoteMethod[[str, str], None]
    evaluated: "RemoteMethod[[int, Mapping[str, Scores], BestScore | None], None]"
    from_group: RemoteMethod[[int, str, tuple[Any, ...]], Any]
    is_preempted: RemoteMethod[[], bool]
    keep_traceback: RemoteMethod[[str, str], None]
    life: RemoteMethod[[], RunLife]
    preempt: RemoteMethod[[], None]
    quarantined: RemoteMethod[[str, int, list[BadSample]], None]
    rank_saved: RemoteMethod[[int, int, bool, TrainingProgress, StoredFile | str], None]
    ranks_hung: RemoteMethod[[str, str, str], None]
    report: RemoteMethod[[str], None]
    open: RemoteMethod[[Mapping[str, str]], str]
    save: RemoteMethod[[], None]
    saved: RemoteMethod[[int], str | None]
    saw_samples: RemoteMethod[[int, int, list[str]], None]
    slow_nodes: RemoteMethod[[], frozenset[str]]
    skipped_step: RemoteMethod[[str], None]
    starting_point: RemoteMethod[[], StartingPoint]
    status: RemoteMethod[[], TrainingStatus]
    trained: RemoteMethod[[StepMetrics], None]
    workers_started: RemoteMethod[[int, int], None]
