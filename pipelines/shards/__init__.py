"""Shards: sources, indexes, readers and the writer."""
