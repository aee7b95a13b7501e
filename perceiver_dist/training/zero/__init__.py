"""The DeepSpeed engine of a rank: optimizer, partitioned state, gradient accumulation, asynchronous saving."""
