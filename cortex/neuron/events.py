"""What happens on this node, to whoever listens on ``GET /events``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from cortex.web import sse

MAX_BEHIND = 1024


class Events:
    """Fans out; a listener that falls `MAX_BEHIND` events behind is dropped and connects again."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Queue[bytes | None]] = set()

    def publish(self, event: str, data: object) -> None:
        """Send an event to every listener."""
        if not self._listeners:
            return
        rendered = sse(event, data)
        for queue in list(self._listeners):
            if queue.qsize() >= MAX_BEHIND:
                self._listeners.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(rendered)

    def close(self) -> None:
        """End every listener's stream."""
        for queue in self._listeners:
            queue.put_nowait(None)

    @contextmanager
    def listener(self) -> Iterator[asyncio.Queue[bytes | None]]:
        """Yield a queue of rendered events; None ends it."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            yield queue
        finally:
            self._listeners.discard(queue)
