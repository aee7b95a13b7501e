"""A file that can only be written on, from begin to end, as a pipe: encoders leave placeholders in its header."""

import io
from typing import Any


class Pipe(io.RawIOBase):
    """Pipe that keeps what is written.

    Attributes:
        content: All bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def write(self, data: Any) -> int:
        self.content += bytes(data)
        return len(data)
