"""The data: shards are written, indexed, planned, read and decoded here, without knowing the model."""
