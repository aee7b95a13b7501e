"""MLflow tracking through a queue on disk, which a background writer sends to the server."""
