"""
Carries one answer from a neuron to a client, transport to transport.

The neuron's body is handed on as it comes, framed anew; nothing of it is parsed, but an event of a
stream waits for its end, so that one the neuron dies in is never seen.  A client that
reads slowly makes the neuron's connection wait (`HIGH_WATER_BYTES`), one that leaves ends it.
Until the head has gone out everything can still fail as an error answer; afterwards a break is
the dialect's error event, and never a clean end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from time import perf_counter

import msgspec
from aiohttp import web

from cortex.chat.events import Usage
from cortex.connection import WRITE_BYTES, taken_of
from cortex.errors import CortexError
from cortex.gateway.hold import Hold, Relayed
from cortex.gateway.kept import Kept
from cortex.gateway.neuron_client import Connection, NeuronClient, remote_error
from cortex.gateway.tail import Tail
from cortex.replies import Tee

HIGH_WATER_BYTES = WRITE_BYTES  # one read may bring 250 KiB more
STALL_S = 60.0  # a neuron sends a keep-alive every 5 s
REFUSAL_BYTES = 64 << 10
OVERLOADED = 529  # what Anthropic has in the place of 503
REFUSALS = (
    *(HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE, OVERLOADED),
    HTTPStatus.INSUFFICIENT_STORAGE,  # its device ran out of memory; another may have more
)
STREAMS = {b"text/event-stream": b"data: ", b"application/x-ndjson": b"\n"}  # once an event
EVENT_ENDS = (b"\n\n", b"\n\r\n")
EVENT_BYTES = 256 << 10  # an event larger than that does not wait for its end
PASSED = frozenset((b"content-type", b"cache-control", b"retry-after"))
_usage = msgspec.json.Decoder(Usage).decode


class Refused(Exception):
    """The neuron will not answer this request now; another, or the same later, may."""


class Exchange:
    """
    One answer on its way; a `cortex.gateway.neuron_client.Receiver`.

    Call `tick` now and then.  Unless it is the last try, an answer of `REFUSALS` is kept from the
    client, for `refusal`.

    Attributes:
        status: Of the answer, 0 before its head.
        refused: The answer was a refusal, and the client has not seen it.
        first_byte_s: When the first byte of the body came, `perf_counter` seconds.
        events: Events of a stream that went by.
        kept: All that went by of a stream, where somebody may want it.
    """

    def __init__(
        self,
        request: web.Request,
        headers: Mapping[str, str],
        *,
        is_last: bool,
        tee: Tee | None = None,
        hold: Hold | None = None,
        tail: Tail | None = None,
        stall_s: float | None = None,
        kept: Kept | None = None,
    ) -> None:
        transport = request.transport
        if transport is None:
            raise asyncio.CancelledError  # the client is gone already
        self.status = 0
        self.first_byte_s = 0.0
        self.events = 0
        self.refused = False
        self.failed: Exception | None = None
        self._is_last = is_last
        self._tee = tee
        self.kept = kept
        self._hold = hold
        self._tail = tail
        self._stall_s = STALL_S if stall_s is None else stall_s
        self._is_stream = False
        self._tells_error = False  # an error is to become an event
        self._mark = b"data: "
        self._client = transport
        self._headers = headers
        self._keep_alive = request.keep_alive
        self._chunked = request.version >= (1, 1)
        self._framing = b""
        self._ends_with_connection = True
        self._passed: list[tuple[bytes, bytes]] = []
        self._usage_header = b""
        self._kept = b""
        self._begun = b""  # of an event whose end has not come
        self._out: list[bytes] = []
        self._is_paused = False
        self._taken: int | None = None
        self._taken_s = 0.0
        self._last_read_s = perf_counter()
        self._finished = False
        self._keeps_upstream = False
        self._connection: Connection | None = None
        self._writer = request.writer
        self._woken = asyncio.Event()

    async def run(self, connection: Connection, client: NeuronClient, request: bytes) -> None:
        """Send *request* over *connection* and carry the answer; see `failed` for how it ended."""
        self._connection, self.failed = connection, None
        self._passed.clear()  # what came of a head that broke off
        try:
            connection.start(request, self)
            while True:
                await self._woken.wait()  # ends with the connection at the latest
                self._woken.clear()
                if self._finished or self.failed is not None:
                    break
                await self._writer.drain()  # the client reads slowly; cancelled if it leaves
                self._is_paused, self._last_read_s = False, perf_counter()
                if connection.transport is not None:
                    connection.transport.resume_reading()
        except BaseException:
            connection.abort()
            raise
        if self._finished and self._keeps_upstream:
            client.release(connection)
        else:
            connection.abort()

    # What the parser says.

    def on_message_begin(self) -> None:
        if self._finished:
            raise ValueError("the neuron sent more than one answer")

    def on_status(self, status: bytes) -> None:
        """Ignore the reason: the number is in the parser."""

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            kind = value.partition(b";")[0]
            self._is_stream, self._mark = kind in STREAMS, STREAMS.get(kind, self._mark)
        if name in PASSED:
            self._passed.append((name, value))
        elif name == b"content-length":
            self._framing = b"content-length: %b\r\n" % value
            self._ends_with_connection = False
        elif name == b"transfer-encoding":
            self._ends_with_connection = False
        elif name == b"x-cortex-usage":
            self._usage_header = value

    def on_headers_complete(self) -> None:
        assert self._connection is not None  # noqa: S101 - set by run
        status = self._connection.parser.get_status_code()
        if status < HTTPStatus.OK:  # interim, such as 100 or 103: the answer is yet to come
            self._passed.clear()
            return
        self.status, self._keeps_upstream = status, self._connection.parser.should_keep_alive()
        self._answer_begins()

    def on_body(self, data: bytes) -> None:
        if self.refused or self._tells_error:
            self._kept = (self._kept + data)[:REFUSAL_BYTES]
            return
        if not self.first_byte_s:
            self.first_byte_s = perf_counter()
        self._pass_on(self._ended(data) if self._is_stream else data)

    def on_message_complete(self) -> None:
        if self.status:
            self._answer_ends()

    # What the answer is to us.

    def _answer_begins(self) -> None:
        if self.status in REFUSALS and not self._is_last:
            self.refused = True
        else:
            self._put_head(self.status, self._framing)

    def _answer_ends(self) -> None:
        if self._hold is not None and self._tells_error:
            self._put(self._hold.event(self.error()))
        if not self.refused:
            self._pass_on(self._begun)
            self._put_end()
        self._finish()

    def _pass_on(self, data: bytes) -> None:
        self.events += data.count(self._mark)
        if self.kept is not None:
            self.kept.feed(data)
        if self._tail is not None:
            self._tail.feed(data)
        self._put(data)

    def _ended(self, data: bytes) -> bytes:
        """Return the events that end in *data*, and keep back the one that has only begun."""
        if self._begun:
            data = self._begun + data
        if data.endswith(b"\n\n"):
            self._begun = b""
            return data
        if self._mark == b"\n":
            end = data.rfind(b"\n") + 1
        else:
            ends = ((data.rfind(mark), len(mark)) for mark in EVENT_ENDS)
            end = max((at + length for at, length in ends if at >= 0), default=0)
        if len(data) - end > EVENT_BYTES:
            end = len(data)
        self._begun = data[end:]
        return data[:end]

    def _finish(self) -> None:
        self._finished = True
        if self._tee is not None and self.is_success:
            self._tee.end()
        self._woken.set()

    # What the client gets.

    def _put_head(self, status: int, framing: bytes) -> None:
        """Put out the head; without *framing* the body is chunked, or ends with the connection."""
        if self._hold is not None and self._hold.is_open:  # the client has one
            self._chunked, self._keep_alive = self._hold.chunked, self._hold.keeps_connection
            self._is_stream, self._tells_error = True, status >= HTTPStatus.BAD_REQUEST
            return
        if framing:
            self._chunked = False
        elif self._chunked:
            framing = b"transfer-encoding: chunked\r\n"
        else:
            self._keep_alive = False  # HTTP/1.0: the end is the end of the connection
        if not self._keep_alive:
            framing += b"connection: close\r\n"
        ours = "".join(f"{name}: {value}\r\n" for name, value in self._headers.items())
        head = b"HTTP/1.1 %d %b\r\n%b%b%b\r\n" % (
            status,
            reason(status),
            b"".join(b"%b: %b\r\n" % pair for pair in self._passed),
            ours.encode(),
            framing,
        )
        self._writer.output_size += len(head)  # see `cortex.web.answer_errors`
        self._out.append(head)

    def _put(self, data: bytes) -> None:
        if self._tee is not None:
            self._tee.feed(data)
        if data:
            self._out.append(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def _put_end(self) -> None:
        if self._chunked:
            self._out.append(b"0\r\n\r\n")

    # What the connection says.

    def flush(self) -> None:
        """Write what one read brought at once; wait if the client falls behind."""
        self._last_read_s = perf_counter()
        self._write_out()

    def _write_out(self) -> None:
        out, self._out = self._out, []
        if not out or self._client.is_closing():
            return  # gone: the handler is about to be cancelled
        self._client.write(b"".join(out))
        if self._client.get_write_buffer_size() > HIGH_WATER_BYTES:
            assert self._connection is not None  # noqa: S101 - set by run
            if self._connection.transport is not None:
                self._connection.transport.pause_reading()
            self._is_paused = True
            self._woken.set()

    def connection_lost(self, error: Exception | None) -> None:
        if self._finished:
            return
        if self.status and error is None and self._ends_with_connection:
            self.on_message_complete()
            self.flush()
            return
        self.failed = error or ConnectionResetError("the neuron closed the connection")
        self._woken.set()

    def tick(self) -> None:
        """Keep a waiting client from giving up; break off a stream silent for its `stall_s`."""
        if self._hold is not None and not self.status:
            self._hold.tick()
        stalled = self.silent_s > self._stall_s
        if self._is_stream and self.status and not self._is_paused and stalled:
            self.connection_lost(TimeoutError(f"the node was silent for {self.silent_s:.0f} s"))

    @property
    def silent_s(self) -> float:
        """How long the node has said nothing, while somebody listened."""
        return perf_counter() - self._last_read_s

    def unread_s(self) -> float:
        """Return how long the client has taken nothing of what waits, as seen call by call."""
        if not self._is_paused or self._client.is_closing():
            return 0.0
        taken = taken_of(self._client)
        if taken is None or taken != self._taken:
            self._taken, self._taken_s = taken, perf_counter()
        return perf_counter() - self._taken_s

    def abandon(self) -> None:
        """Break the client's connection, as if it had left: it takes nothing, not even an error."""
        self._client.abort()

    # The end.

    @property
    def was_sent(self) -> bool:
        """Whether a neuron took the connection for it."""
        return self._connection is not None

    @property
    def is_silent(self) -> bool:
        """Whether the neuron went without a word."""
        return self.failed is not None and not self.status

    @property
    def is_whole(self) -> bool:
        """Whether all of the answer was put out."""
        return self._finished

    @property
    def is_success(self) -> bool:
        """Whether the neuron answered, whole, and not with an error."""
        return self._finished and self.status < HTTPStatus.BAD_REQUEST

    def response(self) -> Relayed:
        """Return what the handler returns."""
        return Relayed(self.status, self._keep_alive)

    def error(self) -> CortexError:
        """Return the error that was kept from the client."""
        return remote_error(self.status, self._kept)

    @property
    def retry_after_s(self) -> float:
        """How long the node wants to be left alone; 0 if it does not say."""
        said = next((value for name, value in self._passed if name == b"retry-after"), b"")
        return float(said) if said.isdigit() else 0.0

    def refusal(self) -> web.Response:
        """Return the answer that was kept from the client."""
        passed = {name.decode(): value.decode("latin-1") for name, value in self._passed}
        return web.Response(
            status=self.status, body=self._kept, headers={**passed, **self._headers}
        )

    def break_off(self, event: bytes) -> Relayed:
        """End a broken answer: with *event* in a stream, else by closing, never cleanly."""
        if self._client.is_closing():
            return Relayed(self.status, keep_alive=False)
        if self._is_stream and self._chunked:
            self._client.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event))
            return self.response()
        if self._is_stream:
            self._client.write(event)
        self._client.close()
        return Relayed(self.status, keep_alive=False)

    def tokens(self) -> int:
        """Return how many tokens of a stream went by, as far as its events tell."""
        if self._hold is None or not self.events:
            return 0
        others = self._hold.beginning().count(self._mark) - 1
        return max(0, self.events - others)

    def usage(self) -> Usage | None:
        """Return the neuron's count of tokens, if the answer got that far."""
        try:
            if self._usage_header:
                return _usage(self._usage_header)
        except msgspec.DecodeError:
            return None
        return self._tail.usage() if self._tail is not None else None


def reason(status: int) -> bytes:
    """Return the reason phrase of a status."""
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""
