"""Messages as they come out of a socket.

    message = length u32 | kind u8 | body                       (length counts the body)

What surprises: the socket reads a body straight into memory of its own, which belongs to whoever takes the
message. So a picture is not copied between the kernel and the engine, and no task wakes up for it.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

from rearview.transport.wire import WireError

__all__ = ["MessageProtocol", "message_prefix"]

_PREFIX = struct.Struct("<IB")


def message_prefix(kind: int, length: int) -> bytes:
    """What precedes a body of `length` bytes."""
    return _PREFIX.pack(length, kind)


class MessageProtocol(asyncio.BufferedProtocol):
    """Cuts what a socket reads into messages. For one event loop."""

    def __init__(
        self,
        max_bytes: int,
        on_message: Callable[[int, bytearray], None],
        on_end: Callable[[Exception | None], None],
    ) -> None:
        """`on_message` takes the kind and the body of each message.

        `on_end`: nothing more will come, since a message could not be read (WireError) or `on_message` has
        failed with this, or since the connection is lost.
        """
        self._max_bytes = max_bytes
        self._on_message, self._on_end = on_message, on_end
        self._prefix = memoryview(bytearray(_PREFIX.size))
        self._kind = 0
        self._body: bytearray | None = None
        """Of the message whose prefix was read."""
        self._missing = self._prefix
        """Where the next bytes go: the rest of a prefix or of a body."""
        self._ended = False
        self.lost = asyncio.Event()
        """Set when the socket is closed."""
        self.drained = asyncio.Event()
        """Set while the peer has read nearly all that was written, and when it will not read any more."""
        self.drained.set()

    def feed(self, data: bytes) -> None:
        """Take bytes that were read before this protocol was there."""
        while data and not self._ended:
            size = min(len(data), len(self._missing))
            self._missing[:size] = data[:size]
            data = data[size:]
            self.buffer_updated(size)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the socket is to read to."""
        return self._missing

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes were read."""
        self._missing = self._missing[nbytes:]
        if self._missing or self._ended:
            return
        try:
            self._complete()
        except Exception as error:  # Handed over whole to whoever owns the connection.
            self.end(error)

    def end(self, error: Exception | None = None) -> None:
        """Deliver nothing any more; idempotent."""
        if not self._ended:
            self._ended, self._missing = True, self._prefix
            self._on_end(error)

    def pause_writing(self) -> None:
        """Too much is unread."""
        self.drained.clear()

    def resume_writing(self) -> None:
        """It was read."""
        self.drained.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self.lost.set()
        self.drained.set()
        self.end()

    def _complete(self) -> None:
        """A prefix or a body is there."""
        if self._body is None:
            length, self._kind = _PREFIX.unpack(self._prefix)
            if length > self._max_bytes:
                raise WireError(f"message of {length} bytes is over the limit {self._max_bytes}")
            self._body = bytearray(length)
            self._missing = memoryview(self._body)
            if length:
                return
        body, self._body, self._missing = self._body, None, self._prefix
        self._on_message(self._kind, body)
