"""
Server-sent events, read as they come.

Reference: https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

Event = tuple[str, bytes]


class SseReader:
    """
    Turns the bytes of a stream, cut anywhere, into events.

    Lines end with CR, LF or both.  Comments, ids and retry times are skipped; so is an event
    without data, and one the end of the stream cuts off.
    """

    def __init__(self) -> None:
        self._line = b""  # begun, not ended
        self._skips_lf = False  # the last byte was a CR; an LF that follows belongs to it
        self._name = ""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that *data* completes: name, empty if it has none, and data."""
        if self._skips_lf and data:
            data = data.removeprefix(b"\n")
            self._skips_lf = False
        if not data:
            return []
        lines = (self._line + data).splitlines()
        self._skips_lf = data.endswith(b"\r")
        self._line = b"" if data.endswith((b"\n", b"\r")) else lines.pop()
        return [event for line in lines if (event := self._take(line)) is not None]

    def _take(self, line: bytes) -> Event | None:
        if line:
            field, _, value = line.partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
            elif field == b"event":
                self._name = value.removeprefix(b" ").decode("utf-8", "replace")
            return None
        event = (self._name, b"\n".join(self._data)) if self._data else None
        self._name, self._data = "", []
        return event
