"""Frames between the supervisor and a process in a jail: one kind byte, eight length bytes, the payload.

The reader bounds every length before it allocates, since the other side may be hostile.
"""

from __future__ import annotations

import socket
import struct

HEADER = struct.Struct("<cQ")


class FrameError(ValueError):
    """Bytes that are not a frame, or a frame larger than allowed."""


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    return HEADER.pack(kind, len(payload)) + payload


def send(sock: socket.socket, kind: bytes, payload: bytes = b"") -> None:
    """Send one frame whole."""
    sock.sendall(frame(kind, payload))


def receive(sock: socket.socket, limit: int = 1 << 31) -> tuple[bytes, bytes]:
    """(kind, payload), or (b"", b"") at the end of the stream. Raises FrameError for too long or cut-off frames."""
    header = _exactly(sock, HEADER.size)
    if not header:
        return b"", b""
    kind, size = HEADER.unpack(header)
    if size > limit:
        raise FrameError(f"a frame of {size} bytes where {limit} are allowed")
    payload = _exactly(sock, size)
    if len(payload) != size:
        raise FrameError("the stream ends in the middle of a frame")
    return kind, payload


def _exactly(sock: socket.socket, count: int) -> bytes:
    parts = []
    left = count
    while left:
        piece = sock.recv(min(left, 1 << 20))
        if not piece:
            break
        parts.append(piece)
        left -= len(piece)
    data = b"".join(parts)
    if data and len(data) < count:
        raise FrameError("the stream ends in the middle of a frame")
    return data
