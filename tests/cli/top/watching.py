"""A gateway that tells dashboards what a test wants, over real sockets, and who looks at one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import msgspec
from aiohttp import web

from cortex.cli.client import Gateway
from cortex.cli.top.app import TopApp
from cortex.config.schema import Address
from cortex.fleet.node import Explanation, Fleet, RequestState
from cortex.web import listening, sse

LOOK_S = 0.03
Asked = tuple[str, str, dict]


class TellingGateway:
    """
    Streams events, answers what is asked, and notes what it is told to do.

    Attributes:
        told: Method, path and body of whatever is no question.
        answers: To those, by path; else it says that there is none.
        streams: How many were begun.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.requests: tuple[RequestState, ...] = ()
        self.explanation = Explanation(model="m", how="nowhere")
        self.told: list[Asked] = []
        self.answers: dict[str, dict] = {}
        self.streams = 0
        self._queues: set[asyncio.Queue[bytes | None]] = set()
        self._running: tuple | None = None
        self.url = ""

    async def start(self, address: Address | None = None) -> None:
        app = web.Application()
        app.router.add_get("/api/v1/events", self._events)
        app.router.add_get("/api/v1/{what:fleet|requests|explain}", self._say)
        app.router.add_route("*", "/{path:.*}", self._tell)
        serving = listening(app, address or Address("127.0.0.1", 0), drain_s=0.0)
        self.address = await serving.__aenter__()
        self._running = serving
        self.url = f"http://127.0.0.1:{self.address.port}"

    async def stop(self) -> None:
        """Be gone: streams break, and nobody listens."""
        serving, self._running = self._running, None
        for queue in self._queues:
            queue.put_nowait(None)
        if serving is not None:
            await serving.__aexit__(None, None, None)

    def tell(self, event: str, data: object) -> None:
        for queue in self._queues:
            queue.put_nowait(sse(event, data))

    async def _say(self, request: web.Request) -> web.Response:
        bodies = {
            "fleet": self.fleet,
            "requests": {"requests": self.requests},
            "explain": self.explanation,
        }
        body = msgspec.json.encode(bodies[request.match_info["what"]])
        return web.Response(body=body, content_type="application/json")

    async def _tell(self, request: web.Request) -> web.Response:
        raw = await request.read()
        path = request.rel_url.raw_path
        self.told.append((request.method, path, json.loads(raw) if raw else {}))
        answer = self.answers.get(path)
        if answer is None:
            error = {"error": {"message": "there is none", "code": "not_found"}}
            return web.json_response(error, status=404)
        return web.json_response(answer)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_type = "text/event-stream"
        await response.prepare(request)
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._queues.add(queue)
        self.streams += 1
        try:
            await response.write(sse("snapshot", self.fleet))
            while (event := await queue.get()) is not None:
                await response.write(event)
        finally:
            self._queues.discard(queue)
        return response


class Watcher:
    """Somebody who looks at the dashboard and presses keys."""

    def __init__(self, app: TopApp, pilot) -> None:
        self.app = app
        self.pilot = pilot

    @property
    def text(self) -> str:
        """What is on the screen now, without colours."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join("".join(part.text for part in strip).rstrip() for strip in strips)

    @property
    def lines(self) -> list[str]:
        return [" ".join(line.split()) for line in self.text.splitlines()]

    async def sees(self, *wanted: str, timeout_s: float = 15.0) -> str:
        """Wait until all that is *wanted* is on the screen; return its text."""
        deadline = monotonic() + timeout_s
        while True:
            text = "\n".join(self.lines)
            missing = [each for each in wanted if each not in text]
            if not missing:
                return text
            assert monotonic() < deadline, f"{missing} never came, but:\n{self.text}"
            await asyncio.sleep(LOOK_S)  # to draw a whole screen costs more than to wait

    async def resize(self, size: tuple[int, int]) -> None:
        await self.pilot.resize_terminal(*size)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)


@asynccontextmanager
async def watching(url: str, *, size: tuple[int, int] = (80, 24), **more) -> AsyncIterator[Watcher]:
    """Run the dashboard on a terminal of *size* that is not there."""
    app = TopApp(Gateway(url), **more)
    async with app.run_test(size=size, notifications=True) as pilot:
        yield Watcher(app, pilot)
