"""Modules that the processes of a run need, imported once on one machine (`perceiver_dist.cluster.worker_template`)."""

from perceiver_dist.cluster.worker_template import TemplateImports

TRAINING = TemplateImports(
    first=("numpy", "pandas", "pyarrow", "torch"),
    before_fork=(
        "ray.train.v2._internal.execution.controller.controller",
        "ray.train.torch",
        "perceiver_dist.training.worker",
        "perceiver_dist.training.datasets",
        "perceiver_dist.training.tracker.actor",
    ),
    # For the tracker.
    while_idle=("perceiver_dist.tracking.mlflow_run",),
    # For the ranks. DeepSpeed imports the others when it builds its engine.
    without_gpu=("perceiver_dist.training.loop", "deepspeed", "torch._dynamo", "deepspeed.runtime.engine"),
)
"""Imports for training, and for the trials of a search."""
