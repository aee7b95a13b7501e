"""Data pipeline: write, index, plan, read and decode shards. It knows nothing of the model and needs no torch."""
