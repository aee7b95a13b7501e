"""Recording in MLflow: a queue on disk, and a background writer that sends what waits there."""
