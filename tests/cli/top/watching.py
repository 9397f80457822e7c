"""A gateway that tells dashboards what a test wants, over real sockets, and who looks at one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from time import monotonic

import msgspec
from aiohttp import web
from textual.events import Key
from textual.pilot import Pilot
from textual.widget import Widget

from cortex.cli.client import Gateway
from cortex.cli.top.app import TopApp
from cortex.config.schema import Address
from cortex.fleet.node import Explanation, Fleet, RequestState
from cortex.web import listening, sse

Asked = tuple[str, str, dict]


class TellingGateway:
    """
    Streams events, answers what is asked, and notes what it is told to do.

    Attributes:
        told: Method, path and body of whatever is no question.
        answers: To those, by path; else it says that there is none.
        past: Snapshots that a stream begins with, before the one that is.
        streams: How many were begun.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.past: tuple[Fleet, ...] = ()
        self.requests: tuple[RequestState, ...] = ()
        self.explanation = Explanation(model="m", how="nowhere")
        self.told: list[Asked] = []
        self.answers: dict[str, dict] = {}
        self.streams = 0
        self._queues: set[asyncio.Queue[bytes]] = set()
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
        """Be gone: nobody listens, and streams break."""
        serving, self._running = self._running, None
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
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._queues.add(queue)
        self.streams += 1
        try:
            for fleet in (*self.past, self.fleet):
                await response.write(sse("snapshot", fleet))
            while True:
                await response.write(await queue.get())
        finally:
            self._queues.discard(queue)
        return response


class Watched(TopApp):
    """The dashboard, which says when it has drawn something."""

    drawn: asyncio.Event

    def post_display_hook(self) -> None:
        self.drawn.set()


class Watcher:
    """Somebody who looks at the dashboard and presses keys."""

    def __init__(self, app: Watched, pilot: Pilot[None]) -> None:
        self.app = app
        self._pilot = pilot

    @property
    def text(self) -> str:
        """What is on the screen now, without colours."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join("".join(part.text for part in strip).rstrip() for strip in strips)

    async def until(
        self, right: Callable[[str], bool], wrong: Callable[[str], str], timeout_s: float = 15.0
    ) -> str:
        """Wait until the screen's text is *right*, and return it; look whenever one was drawn."""
        deadline = monotonic() + timeout_s
        while not right(text := self.text):
            self.app.drawn.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.app.drawn.wait(), deadline - monotonic())
            assert monotonic() < deadline, wrong(self.text)
        return text

    async def sees(self, *wanted: str, gone: str = "") -> str:
        """Wait until all *wanted* is on the screen, blanks aside, and what is *gone* is not."""

        def right(text: str) -> bool:
            text = plain(text)
            return all(each in text for each in wanted) and not (gone and gone in text)

        def wrong(text: str) -> str:
            return f"{wanted} and not {gone!r} never came, but:\n{text}"

        return plain(await self.until(right, wrong))

    def press(self, *keys: str) -> None:
        """Press keys as fast as anybody can: what they do is waited for by what it shows."""
        for key in keys:
            self.app.post_message(
                Key("space" if key == " " else key, key if len(key) == 1 else None)
            )

    async def click(self, widget: type[Widget], line: int = 0, columns: int = 1) -> None:
        """Click on a line of a widget."""
        await self._pilot.click(widget, offset=(columns, line))

    async def resize(self, size: tuple[int, int]) -> None:
        await self._pilot.resize_terminal(*size)


def plain(text: str) -> str:
    """Return *text* with each run of blanks as one."""
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


@asynccontextmanager
async def watching(url: str, *, size: tuple[int, int] = (80, 24), **more) -> AsyncIterator[Watcher]:
    """Run the dashboard on a terminal of *size* that is not there."""
    app = Watched(Gateway(url), **more)
    app.drawn = asyncio.Event()
    async with app.run_test(size=size, notifications=True) as pilot:
        yield Watcher(app, pilot)
