"""Inspection of shards before training: lint every sample, summarize the content, preview random samples."""
