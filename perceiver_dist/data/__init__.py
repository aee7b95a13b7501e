"""Data loading: indexing of shards on the cluster, and units as batches on the device."""
