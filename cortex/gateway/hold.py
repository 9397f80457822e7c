"""
What a streaming client sees while nothing has come for it: keep-alives of its own dialect.

Who waits longer than `HOLD_S`, in a queue, for a load or for a prefill, gets the head of a stream,
and from then on bytes at least every `KEEP_ALIVE_S`: the watchdogs of SDKs count them as life.
Once it is open, what goes wrong is an event of the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from http import HTTPStatus
from time import perf_counter, time
from typing import Any, TypeVar

from aiohttp import web

from cortex.api import ChatDialect, ReplyEncoder
from cortex.chat.events import Started, TextDelta
from cortex.chat.request import ChatRequest
from cortex.errors import CortexError
from cortex.web import id_headers, request_id

HOLD_S = 8.0
KEEP_ALIVE_S = 5.0
T = TypeVar("T")


class Relayed(web.StreamResponse):
    """What a handler returns once the relay has written the answer itself."""

    def __init__(self, status: int, keep_alive: bool) -> None:
        super().__init__(status=status)
        self._keep_alive = keep_alive
        self._eof_sent = True

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write nothing: it is written."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Write nothing: it is written."""


class Hold:
    """
    One client that waits for its stream.

    Attributes:
        is_open: It has the head of its answer: no error status can follow.
        chunked: How that is framed; not so with HTTP/1.0, where the connection ends it.
    """

    def __init__(self, request: web.Request, dialect: ChatDialect, body: bytes) -> None:
        self.is_open = False
        self.chunked = request.version >= (1, 1)
        self.keeps_connection = request.keep_alive and self.chunked
        self._request = request
        self._dialect = dialect
        self._body = body
        self._encoder: ReplyEncoder | None = None
        self._due = perf_counter() + HOLD_S

    def goes_on(self, encoder: ReplyEncoder) -> None:
        """Wait with a client whose answer, *encoder*'s, has begun already."""
        self.is_open, self._encoder = True, encoder
        self._due = perf_counter() + KEEP_ALIVE_S

    async def during(self, waiting: Coroutine[Any, Any, T]) -> T:
        """Return what *waiting* does, and keep the client from giving up meanwhile."""
        beating = asyncio.ensure_future(self._beat())
        try:
            return await waiting  # bounded by who waits
        finally:
            beating.cancel()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._due - perf_counter())
            self.tick()

    def tick(self) -> None:
        """Send a keep-alive if one is due."""
        if perf_counter() < self._due:
            return
        self._due = perf_counter() + KEEP_ALIVE_S
        if self._encoder is None:
            if (chat := self._chat()) is None:
                return
            self._encoder = self._dialect.encoder(chat, int(time()))
        data = self._encoder.keep_alive()
        if data and (transport := self._request.transport) is not None:
            head = b"" if self.is_open else self._head(self._encoder.content_type)
            self.is_open = True
            self._request.writer.output_size += len(head)  # see `cortex.web.answer_errors`
            transport.write(head + self.frame(data))

    def beginning(self) -> bytes:
        """Return how a stream begins that has one token so far."""
        if (chat := self._chat()) is None:
            return b""
        encoder = self._dialect.encoder(chat, 0)
        return encoder.feed(Started(prompt_tokens=0)) + encoder.feed(TextDelta("x"))

    def _chat(self) -> ChatRequest | None:
        try:
            return self._dialect.parse_request(self._body, request_id(self._request))
        except CortexError:
            return None  # it will be refused when its turn comes

    def frame(self, data: bytes) -> bytes:
        """Return *data* as it goes over the wire."""
        return b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data

    def event(self, error: CortexError) -> bytes:
        """Return the event that tells of *error*."""
        return self._dialect.render_stream_error(error, request_id(self._request))

    def end(self, error: CortexError) -> Relayed:
        """End the stream with an error; return what the handler returns."""
        if (transport := self._request.transport) is not None:
            last = b"0\r\n\r\n" if self.chunked else b""
            transport.write(self.frame(self.event(error)) + last)
        return Relayed(HTTPStatus.OK, self.keeps_connection)

    def _head(self, content_type: str) -> bytes:
        framing = "Transfer-Encoding: chunked\r\n" if self.chunked else ""
        if not self.keeps_connection:
            framing += "Connection: close\r\n"
        headers = {"Content-Type": content_type, "Cache-Control": "no-cache"}
        lines = {**headers, **id_headers(self._request)}
        said = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"HTTP/1.1 200 OK\r\n{said}{framing}\r\n".encode("latin-1", "replace")
