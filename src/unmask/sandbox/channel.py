"""Frames from a process that may be hostile: buffered, bounded, never blocking longer than asked."""

import select
import socket
from collections import deque
from collections.abc import Sequence

from unmask.sandbox.inside import wire


class Garbled(ValueError):
    """The other side sent what is not a frame, or more than allowed."""


class Channel:
    """The supervisor's end of the socket to one child."""

    def __init__(self, sock: socket.socket, *, limit: int) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._limit = limit
        self._buffer = bytearray()
        self._frames: deque[tuple[bytes, bytes]] = deque()
        self.received = 0
        """Payload bytes so far."""
        self.is_closed = False

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, kind: bytes, payload: bytes = b"", *, seconds: float = 30.0) -> None:
        """Send one frame whole; an OSError if the other side does not take it."""
        self._sock.settimeout(seconds)
        try:
            self._sock.sendall(wire.frame(kind, payload))
        finally:
            self._sock.setblocking(False)

    def take(self) -> tuple[bytes, bytes] | None:
        """The next frame that has arrived, `(b"", b"")` at the end of the stream, None when there is nothing yet.

        Raises Garbled.
        """
        if not self._frames and not self.is_closed:
            self._fill()
        if self._frames:
            return self._frames.popleft()
        return (b"", b"") if self.is_closed else None

    def close(self) -> None:
        self._sock.close()

    def _fill(self) -> None:
        """Read what is there, and cut it into frames."""
        try:
            piece = self._sock.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self.is_closed = True
            return
        self._buffer += piece
        head, at = wire.HEADER.size, 0
        while len(self._buffer) - at >= head:
            kind, size = wire.HEADER.unpack_from(self._buffer, at)
            if self.received + size > self._limit:
                raise Garbled(f"it returned more than {self._limit} bytes")
            if len(self._buffer) - at < head + size:
                break
            self._frames.append((kind, bytes(self._buffer[at + head : at + head + size])))
            self.received += size
            at += head + size
        del self._buffer[:at]


def wait(channels: Sequence[Channel], seconds: float) -> None:
    """Return when one of the channels has something, or the time is over."""
    if any(channel._frames or channel.is_closed for channel in channels):
        return
    poll = select.poll()
    for channel in channels:
        poll.register(channel.fileno(), select.POLLIN | select.POLLHUP)
    poll.poll(max(0.0, seconds) * 1000)
