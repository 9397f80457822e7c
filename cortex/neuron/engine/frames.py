"""Messages over a stream socket: each behind its length."""

from __future__ import annotations

import socket
import struct

LENGTH = struct.Struct(">I")


def framed(body: bytes) -> bytes:
    """Return a message ready to send."""
    return LENGTH.pack(len(body)) + body


def receive(channel: socket.socket) -> bytes | None:
    """Block for the next message; None when the other side is gone."""
    head = _exactly(channel, LENGTH.size)
    return _exactly(channel, LENGTH.unpack(head)[0]) if head else None


def _exactly(channel: socket.socket, count: int) -> bytes | None:
    parts = []
    while count:
        try:
            part = channel.recv(min(count, 1 << 20))
        except OSError:
            return None
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
