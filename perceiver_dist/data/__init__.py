"""Data on its way into the model: indexed shards, and units as batches on the device."""
