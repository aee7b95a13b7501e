"""Training: Ray Train workers, each with a DeepSpeed engine, that read units and report to a tracker."""
