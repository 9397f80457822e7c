"""What happens in this process, to whoever listens: one stream of server-sent events each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiohttp import web

from cortex.web import sse

MAX_BEHIND = 1024
KEEP_ALIVE_S = 15.0
STUCK_S = 60.0  # a listener that takes nothing for so long is gone


class Events:
    """Fans out; a listener that falls `MAX_BEHIND` events behind is dropped and connects again."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Queue[bytes | None]] = set()

    def __len__(self) -> int:
        return len(self._listeners)

    def publish(self, event: str, data: object) -> None:
        """Send an event to every listener."""
        if not self._listeners:
            return
        rendered = sse(event, data)
        for queue in list(self._listeners):
            if queue.qsize() >= MAX_BEHIND:
                self._listeners.discard(queue)
                queue.put_nowait(sse("dropped", {"reason": f"{MAX_BEHIND} events behind"}))
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

    async def stream(
        self, request: web.Request, snapshot: Callable[[], object]
    ) -> web.StreamResponse:
        """Answer with a snapshot, then with what happens, until the client or we are done."""
        response = web.StreamResponse(headers={"Cache-Control": "no-cache"})
        response.content_type = "text/event-stream"
        await response.prepare(request)
        with self.listener() as queue:
            event: bytes | None = sse("snapshot", snapshot())
            while event is not None:
                try:
                    async with asyncio.timeout(STUCK_S):
                        await response.write(event)
                except TimeoutError:
                    if request.transport is not None:
                        request.transport.abort()
                    return response
                event = await _next(queue)
        return response


async def _next(queue: asyncio.Queue[bytes | None]) -> bytes | None:
    try:
        async with asyncio.timeout(KEEP_ALIVE_S):
            return await queue.get()
    except TimeoutError:
        return b": keep-alive\n\n"
