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
Wants = Callable[[object], bool]


def all_of_it(_: object) -> bool:
    """Want every event."""
    return True


class Events:
    """Fans out; a listener that falls `MAX_BEHIND` events behind is dropped and connects again."""

    def __init__(self) -> None:
        self._listeners: dict[asyncio.Queue[bytes | None], Wants] = {}

    def __len__(self) -> int:
        return len(self._listeners)

    def publish(self, event: str, data: object) -> None:
        """Send an event to every listener that wants it."""
        wanting = [queue for queue, wants in self._listeners.items() if wants(data)]
        if not wanting:
            return
        rendered = sse(event, data)
        for queue in wanting:
            if queue.qsize() >= MAX_BEHIND:
                del self._listeners[queue]
                queue.put_nowait(sse("dropped", {"reason": f"{MAX_BEHIND} events behind"}))
                queue.put_nowait(None)
            else:
                queue.put_nowait(rendered)

    def close(self) -> None:
        """End every listener's stream."""
        for queue in self._listeners:
            queue.put_nowait(None)

    @contextmanager
    def listener(self, wants: Wants = all_of_it) -> Iterator[asyncio.Queue[bytes | None]]:
        """Yield a queue of rendered events, of those whose data it *wants*; None ends it."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._listeners[queue] = wants
        try:
            yield queue
        finally:
            self._listeners.pop(queue, None)

    async def stream(
        self, request: web.Request, snapshot: Callable[[], object], wants: Wants = all_of_it
    ) -> web.StreamResponse:
        """Answer with a snapshot, then with what happens, until the client or we are done."""
        response = await begin(request)
        with self.listener(wants) as queue:
            event: bytes | None = sse("snapshot", snapshot())
            while event is not None and await take(request, response, event):
                event = await _next(queue)
        return response


async def begin(request: web.Request) -> web.StreamResponse:
    """Begin a stream of events."""
    response = web.StreamResponse(headers={"Cache-Control": "no-cache"})
    response.content_type = "text/event-stream"
    await response.prepare(request)
    return response


async def take(request: web.Request, response: web.StreamResponse, event: bytes) -> bool:
    """Send an event; tell whether the listener took it."""
    try:
        async with asyncio.timeout(STUCK_S):
            await response.write(event)
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        return False
    return True


async def _next(queue: asyncio.Queue[bytes | None]) -> bytes | None:
    try:
        async with asyncio.timeout(KEEP_ALIVE_S):
            return await queue.get()
    except TimeoutError:
        return b": keep-alive\n\n"
