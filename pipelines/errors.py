"""Errors of the data: a shard as a whole, or one sample in it."""

from perceiver_dist.errors import UserError


class ShardError(UserError):
    """A shard that cannot be read, written or trusted. The message names the shard; the run ends."""


class SampleError(UserError):
    """A sample that cannot be used. The message is one line with the reason; the sample is quarantined.

    Decoders raise it without knowing where their bytes came from. The caller adds the shard and the key.
    """
