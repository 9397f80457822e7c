"""
Serves a client of one dialect from a server that speaks another.

The request is read and written anew; the answer is asked for as a stream, and each of its events is
written in the client's dialect as it comes.  Bytes pass untouched where no translation is needed,
see `cortex.gateway.relay`.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from time import perf_counter, time
from typing import cast

import attrs
from aiohttp import web

from cortex.api import ChatClient, ChatDialect, Dialect
from cortex.chat.events import (
    Failed,
    Finished,
    Started,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
    total_usage,
)
from cortex.chat.request import ChatRequest, RequestHead
from cortex.errors import CortexError
from cortex.gateway.hold import KEEP_ALIVE_S, Hold
from cortex.gateway.neuron_client import Connection, NeuronClient
from cortex.gateway.node import Node
from cortex.gateway.relay import REFUSAL_BYTES, REFUSALS, Exchange
from cortex.replies import Tee

STALL_S = 600.0  # a server that is not ours may be silent for the whole of a prefill


class Translators:
    """Knows in which dialect a node can be asked for a client; *dialects* are all there are."""

    def __init__(self, dialects: Mapping[str, Dialect]) -> None:
        found = {name: getattr(dialect, "client", None) for name, dialect in dialects.items()}
        self._clients: dict[str, ChatClient] = {n: c for n, c in found.items() if c is not None}

    def spoken(self, node: Node, head: RequestHead) -> str | None:
        """Return the client's own dialect if *node* speaks it, else one of its own, or None."""
        if node.discovery is None or head.dialect in node.discovery.dialects:
            return head.dialect  # it never said: no opinion
        if head.operation != "chat":
            return None
        return next((name for name in node.discovery.dialects if name in self._clients), None)

    def can(self, dialect: str | None, head: RequestHead) -> bool:
        """Tell whether a request can be written anew in *dialect*."""
        return head.operation == "chat" and dialect in self._clients

    def between(
        self, dialect: Dialect, spoken: str | None, body: bytes, request_id: str
    ) -> Translation:
        """
        Read a request of *dialect* that is to be asked in another, one `spoken` returned.

        Raises:
            InvalidRequest: As the client's dialect says it.
        """
        assert spoken is not None  # noqa: S101 - the router leaves such nodes out
        ours = cast("ChatDialect", dialect)
        chat = ours.parse_request(body, request_id)
        return Translation(chat=chat, dialect=ours, client=self._clients[spoken])


@attrs.frozen(kw_only=True)
class Translation:
    """One request, and the two dialects it is between."""

    chat: ChatRequest
    dialect: ChatDialect
    client: ChatClient

    def body(self, model: str, context: int) -> bytes:
        """
        Return the request for *model* as the server gets it.

        A bound on the answer that a window of *context* tokens (0: unknown) hardly has room for is
        left out: agents ask for more than small models have, and servers refuse what ours clamp.
        """
        sampling = self.chat.sampling
        if context and (sampling.max_tokens or 0) > context // 2:
            sampling = attrs.evolve(sampling, max_tokens=None)
        asked = attrs.evolve(
            self.chat, model=model, sampling=sampling, stream=True, include_usage=True
        )
        return self.client.render_request(asked)


class Translated(Exchange):
    """
    One answer on its way from one dialect into another.

    An answer that is not streamed goes out once it is whole, so everything can still fail as an
    error answer, or be asked for elsewhere.
    """

    def __init__(
        self,
        request: web.Request,
        headers: Mapping[str, str],
        *,
        is_last: bool,
        tee: Tee | None,
        hold: Hold | None,
        translation: Translation,
    ) -> None:
        super().__init__(request, headers, is_last=is_last, tee=tee, hold=hold, stall_s=STALL_S)
        self._between = translation
        self._is_stream = translation.chat.stream
        self._is_open = False
        self._usages: dict[int, Usage] = {}
        self._error: CortexError | None = None
        self._whole = b""

    def nothing(self) -> web.Response | None:
        """Return the answer to a request for nothing: its model is loaded, and that is all."""
        chat = self._between.chat
        if chat.messages or chat.prompts:
            return None
        encoder = self._between.dialect.encoder(chat, int(time()))
        body = encoder.feed(Started(prompt_tokens=0))
        body += encoder.feed(Finished(reason="stop", usage=Usage()))
        return web.Response(body=body, content_type=encoder.content_type, headers=self._headers)

    async def run(self, connection: Connection, client: NeuronClient, request: bytes) -> None:
        """Do as `Exchange.run`, from the beginning."""
        chat = self._between.chat
        self.status, self._whole, self._error = 0, b"", None
        self._usages.clear()
        self._encoder = self._between.dialect.encoder(chat, int(time()))
        self._decoder = self._between.client.decoder(chat)
        await super().run(connection, client, request)

    @property
    def is_silent(self) -> bool:
        return self.failed is not None and not self._is_open

    @property
    def is_success(self) -> bool:
        return super().is_success and self._error is None

    def tokens(self) -> int:
        return self.events

    def usage(self) -> Usage | None:
        return total_usage(self._usages, self._between.chat.n) if self._usages else None

    def tick(self) -> None:
        waits = self._is_open and self._is_stream and not (self._finished or self._is_paused)
        if waits and self.silent_s > KEEP_ALIVE_S:
            self._put(self._encoder.keep_alive())
            self._write_out()
        super().tick()

    # What the parser says.

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._is_stream = self._between.chat.stream

    def _answer_begins(self) -> None:
        if self.status in REFUSALS and not self._is_last:
            self.refused = True
        elif self.status < HTTPStatus.BAD_REQUEST and self._is_stream:
            self._open(self.status, self._encoder.content_type)

    def on_body(self, data: bytes) -> None:
        self.first_byte_s = self.first_byte_s or perf_counter()
        if self.status >= HTTPStatus.BAD_REQUEST:
            self._kept = (self._kept + data)[:REFUSAL_BYTES]
        else:
            self._translate(data)

    def _answer_ends(self) -> None:
        if self.status >= HTTPStatus.BAD_REQUEST:
            if not self.refused:
                self._refuse(self.error())
        else:
            self._translate(None)
            if not self._is_stream and self._error is not None:
                self._refuse(self._error)
            elif not self._is_stream:
                self._open(self.status, self._encoder.content_type, len(self._whole))
                self._put(self._whole)
            self._put_end()
        self._finish()

    # The end.

    def error(self) -> CortexError:
        return self._between.client.read_error(self.status, self._kept)

    def refusal(self) -> web.Response:
        body = self._say(self.error())
        passed = {name.decode(): value.decode("latin-1") for name, value in self._passed}
        return web.Response(status=self.status, body=body, headers={**passed, **self._headers})

    def _say(self, error: CortexError) -> bytes:
        """Return the body of an error; its status and headers are set."""
        self.status, body = self._between.dialect.render_error(error, self._headers["x-request-id"])
        later = [pair for pair in self._passed if pair[0] == b"retry-after"]
        if not later and error.retry_after_s is not None:
            later = [(b"retry-after", b"%d" % max(1, round(error.retry_after_s)))]
        self._passed = [*later, (b"content-type", b"application/json")]
        return body

    def _refuse(self, error: CortexError) -> None:
        if self._hold is not None and self._hold.is_open:
            self._error = error
            self._open(HTTPStatus.OK, "")
            self._put(self._hold.event(error))
            self._put_end()
            return
        body = self._say(error)
        self._open(self.status, "application/json", len(body))
        self._put(body)

    def _open(self, status: int, content_type: str, length: int | None = None) -> None:
        self._is_open = True
        self._passed = [(n, v) for n, v in self._passed if n == b"retry-after"]
        self._passed.append((b"content-type", content_type.encode()))
        self._put_head(status, b"" if length is None else b"content-length: %d\r\n" % length)

    def _translate(self, data: bytes | None) -> None:
        """Write what *data*, or the end of the answer, brings."""
        if self._error is not None:
            return
        came = self._decoder.end() if data is None else self._decoder.feed(data)
        written = b""
        for choice, event in came:
            match event:
                case TextDelta() | ThinkingDelta() | ToolCallDelta():
                    self.events += 1
                case Finished(usage=usage):
                    self._usages[choice] = usage
                case Failed(error):
                    self._error = error
            if not isinstance(event, Failed) or self._is_stream:
                written += self._encoder.feed(event, choice)
        if self._is_stream:
            self._put(written)
        else:
            self._whole += written
