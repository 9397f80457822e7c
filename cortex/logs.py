"""
What this program logged lately, for whoever asks over HTTP; the log itself stays on stderr.

Lines are kept in memory, the last `MAX_KEPT`, and told to listeners as they come.  A line may come
from any thread.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Literal

import attrs
import msgspec
from aiohttp import web

from cortex.api import Shape
from cortex.errors import InvalidRequest
from cortex.events import Events
from cortex.fleet.node import LogLine
from cortex.log_lines import LEVELS
from cortex.openapi import STREAM, Path
from cortex.web import reply
from cortex.wire import whole

MAX_KEPT = 2000
MAX_MESSAGE_CHARS = 8192
LINES = 200


class Records(msgspec.Struct):
    """``GET /logs``."""

    records: Sequence[LogLine]


PATH = Path(
    summary="Show the last lines of the log",
    shape=Shape(
        answer=Records,
        stream=STREAM,
        query={
            "level": Literal["debug", "info", "warning", "error"],
            "model": str,
            "lines": Annotated[int, msgspec.Meta(ge=0, le=MAX_KEPT)],
            "follow": Literal["0", "1"],
        },
    ),
)


@attrs.frozen(kw_only=True)
class Query:
    """
    Which lines are asked for.

    Attributes:
        level: The least of `LEVELS`.
        model: Only lines that name it.
        lines: How many that were, at most.
        follow: And those to come.
    """

    level: str = LEVELS[0]
    model: str = ""
    lines: int = LINES
    follow: bool = False

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Query:
        """
        Return what a request's query says.

        Raises:
            InvalidRequest: It cannot be; names the parameter.
        """
        level, lines = query.get("level", LEVELS[0]), query.get("lines", str(LINES))
        if level not in LEVELS:
            raise InvalidRequest(f"expected {', '.join(LEVELS)}, got {level!r}", param="level")
        if (count := whole(lines)) is None or count > MAX_KEPT:
            raise InvalidRequest(f"expected 0 to {MAX_KEPT} lines, got {lines!r}", param="lines")
        follow = query.get("follow", "0")
        if follow not in ("0", "1"):
            raise InvalidRequest(f"expected 0 or 1, got {follow!r}", param="follow")
        return cls(level=level, model=query.get("model", ""), lines=count, follow=follow == "1")

    def wants(self, line: object) -> bool:
        """Tell whether a line is meant."""
        assert isinstance(line, LogLine)  # noqa: S101 - nothing else is published here
        loud = LEVELS.index(line.level) >= LEVELS.index(self.level)
        return loud and self.model in line.message


class Logs(logging.Handler):
    """The handler, and who listens."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[LogLine] = deque(maxlen=MAX_KEPT)
        self._numbers = itertools.count(1)
        self._events = Events()
        self._loop: asyncio.AbstractEventLoop | None = None

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Keep what is logged while inside."""
        self._loop = asyncio.get_running_loop()
        root = logging.getLogger()
        root.addHandler(self)
        try:
            yield
        finally:
            root.removeHandler(self)
            self._loop = None

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line, and have it told."""
        number = round(record.levelno, -1) // 10 - 1  # a level of a plugin's own is the nearest
        line = LogLine(
            number=next(self._numbers),
            time=round(record.created, 3),
            level=LEVELS[min(max(number, 0), len(LEVELS) - 1)],
            logger=record.name,
            message=self.format(record)[:MAX_MESSAGE_CHARS],
        )
        self._lines.append(line)
        if (loop := self._loop) is not None:
            with suppress(RuntimeError):  # it is closed, and nobody listens
                loop.call_soon_threadsafe(self._events.publish, "log", line)

    def recent(self, query: Query) -> Records:
        """Return the lines a query is about."""
        wanted = [line for line in list(self._lines) if query.wants(line)]
        return Records(wanted[-query.lines :] if query.lines else [])

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer with lines as JSON, or as a stream that goes on."""
        query = Query.of(request.query)
        if not query.follow:
            return reply(self.recent(query))
        return await self._events.stream(request, lambda: self.recent(query), query.wants)

    def end(self) -> None:
        """End every listener's stream."""
        self._events.close()
