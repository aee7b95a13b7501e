"""What can be wrong with data: a shard as a whole, or one sample in it."""

from perceiver_dist.errors import UserError


class ShardError(UserError):
    """A shard that cannot be read, written or trusted; the message names it."""


class SampleError(UserError):
    """A sample that cannot be used: the message is one line with the reason.

    Decoders raise it without knowing where their bytes came from; the caller adds the shard and the key.
    """
