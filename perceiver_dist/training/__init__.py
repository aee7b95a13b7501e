"""Training: Ray Train workers with a DeepSpeed engine each, fed by units, watched by a tracker."""
