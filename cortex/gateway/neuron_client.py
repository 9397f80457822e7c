"""
Talks to one neuron: its JSON API, and a pool of keep-alive connections for inference.

Inference does not go through an HTTP client: a `Connection` parses what the neuron sends and hands
it on at once (see `cortex.gateway.relay`).  A connection that sees a byte it does not expect is
closed.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import ssl
from collections.abc import AsyncGenerator
from time import monotonic
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import aiohttp
import httptools
import msgspec

from cortex.errors import RemoteError, UpstreamUnreachable

CONNECT_TIMEOUT_S = 5.0
POLL_TIMEOUT_S = 5.0
MAX_IDLE = 256
MAX_IDLE_S = 30.0
VANISHED_S = 15  # so soon a host is noticed that vanished, however long an answer takes
KEEP_ALIVE = (
    ((socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 5),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPINTVL), 5),
    # what was sent and not acknowledged keeps probes back: a request sent to such a host
    ((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT), (VANISHED_S - 1) * 1000),  # by the 3rd probe
)


class UpstreamSlow(UpstreamUnreachable):
    """A neuron did not answer in time; it may be busy."""


class Receiver(Protocol):
    """Who takes one answer off a connection; also httptools' parser callbacks."""

    def on_message_begin(self) -> None: ...
    def on_status(self, status: bytes) -> None: ...
    def on_header(self, name: bytes, value: bytes) -> None: ...
    def on_headers_complete(self) -> None: ...
    def on_body(self, data: bytes) -> None: ...
    def on_message_complete(self) -> None: ...
    def flush(self) -> None:
        """Take note that one read has been parsed."""
        ...

    def connection_lost(self, error: Exception | None) -> None: ...


class Connection(asyncio.Protocol):
    """One connection to a neuron, carrying one exchange at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.reused = False
        self.idle_since = 0.0
        self.parser: Any = None
        self._receiver: Receiver | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        sock = transport.get_extra_info("socket")
        for option, value in KEEP_ALIVE:
            sock.setsockopt(*option, value)

    def start(self, request: bytes, receiver: Receiver) -> None:
        """Send a request; *receiver* gets the answer."""
        assert self.transport is not None  # noqa: S101 - made by the pool
        self._receiver = receiver
        self.parser = httptools.HttpResponseParser(receiver)
        self.transport.write(request)

    def finish(self) -> None:
        """Forget the receiver; what comes now is unexpected."""
        self._receiver = None

    def data_received(self, data: bytes) -> None:
        if (receiver := self._receiver) is None:
            self.abort()
            return
        try:
            self.parser.feed_data(data)
            receiver.flush()
        except httptools.HttpParserError as error:
            receiver.flush()
            ours = isinstance(error, httptools.HttpParserCallbackError)
            self._lose((ours and error.__context__) or error)
            self.abort()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(exc)

    def _lose(self, error: Exception | None) -> None:
        if (receiver := self._receiver) is not None:
            self._receiver = None
            receiver.connection_lost(error)

    def abort(self) -> None:
        """Close at once: the neuron stops generating for it."""
        self._receiver = None
        if self.transport is not None:
            self.transport.abort()

    @property
    def usable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()


class NeuronClient:
    """The one neuron behind *endpoint*; *tls* is for https."""

    def __init__(
        self,
        endpoint: str,
        token: str | None,
        session: aiohttp.ClientSession,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        url = urlsplit(endpoint.rstrip("/").removesuffix("/v1"))  # paths of dialects begin with it
        scheme, port = ("http", 80) if tls is None else ("https", 443)
        self._host, self._port = url.hostname or "", url.port or port
        self._base = f"{scheme}://{url.netloc}{url.path.rstrip('/')}"
        self._session, self.tls = session, tls
        self._idle: list[Connection] = []
        self._closed = False
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.prefix = url.path.rstrip("/").encode()
        self.head = b"Host: %b\r\n" % url.netloc.encode()
        if token:
            self.head += b"Authorization: Bearer %b\r\n" % token.encode()

    # JSON.

    async def get(self, path: str, kind: type[Any]) -> Any:
        """
        Return the body of a GET, decoded as *kind*.

        Raises:
            UpstreamUnreachable: No answer, or none within `POLL_TIMEOUT_S`: `UpstreamSlow`.
            RemoteError: An error answer.
        """
        return msgspec.json.decode(await self._ask("GET", path, None, POLL_TIMEOUT_S), type=kind)

    async def post(self, path: str, body: object, timeout_s: float) -> dict[str, Any]:
        """Return the body of a POST; raises as `get` does."""
        answer = await self._ask("POST", path, msgspec.json.encode(body), timeout_s)
        return msgspec.json.decode(answer, type=dict[str, Any])

    async def _ask(self, method: str, path: str, body: bytes | None, timeout_s: float) -> bytes:
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with self._session.request(
                method,
                self._base + path,
                data=body,
                headers=self.headers,
                timeout=timeout,
                ssl=self.tls or True,
            ) as response:
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            kind = UpstreamSlow if isinstance(error, TimeoutError) else UpstreamUnreachable
            raise kind(f"{self._base} does not answer: {cause_of(error)}") from None
        if response.status >= 400:  # noqa: PLR2004
            raise remote_error(response.status, answer)
        return answer

    async def follow(self, path: str, silence_s: float) -> AsyncGenerator[bytes, None]:
        """
        Yield the body of a GET that does not end, as it comes; to be closed.

        Raises:
            UpstreamUnreachable: No answer, or none goes on: nothing came for *silence_s*.
            RemoteError: An error answer.
        """
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=silence_s
        )
        try:
            async with self._session.get(
                self._base + path, headers=self.headers, timeout=timeout, ssl=self.tls or True
            ) as response:
                if response.status >= 400:  # noqa: PLR2004
                    raise remote_error(response.status, await response.read())
                async for piece in response.content.iter_any():
                    yield piece
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UpstreamUnreachable(f"{self._base} does not answer: {cause_of(error)}") from None

    # Connections.

    async def acquire(self, fresh: bool = False) -> Connection:
        """
        Return a connection, a kept one unless *fresh*.

        Raises:
            UpstreamUnreachable: The neuron takes no connection within `CONNECT_TIMEOUT_S`.
        """
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.usable and monotonic() - connection.idle_since < MAX_IDLE_S:
                connection.reused = True
                return connection
            connection.abort()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(
                    Connection, self._host, self._port, ssl=self.tls
                )
        except (OSError, TimeoutError) as error:
            raise UpstreamUnreachable(
                f"{self._base} takes no connection: {str(error) or 'timeout'}"
            ) from None
        return connection

    def release(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        connection.finish()
        if connection.usable and not self._closed and len(self._idle) < MAX_IDLE:
            connection.idle_since = monotonic()
            self._idle.append(connection)
        else:
            connection.abort()

    def close(self) -> None:
        """Close the kept connections, and keep no others."""
        self._closed = True
        while self._idle:
            self._idle.pop().abort()


def remote_error(status: int, body: bytes) -> RemoteError:
    """Return the error in an answer of the neuron's, ours or anybody's."""
    try:
        error = msgspec.json.decode(body, type=dict[str, Any])["error"]
        details = {k: v for k, v in error.items() if k not in ("message", "type", "code", "param")}
        code = str(error.get("code") or error.get("kind") or "upstream_error")
        return RemoteError(str(error.get("message", code)), code=code, status=status, **details)
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        said = f"status {status} {http.client.responses.get(status, '')}".rstrip()
        text = body[:200].decode("utf-8", "replace").strip()
        if text and not text.startswith("<"):  # nobody wants to read a page of a proxy's
            said += f": {text}"
        return RemoteError(said, code="upstream_error", status=status)


def cause_of(error: Exception) -> str:
    """Say why nothing came; of a connection that failed without aiohttp's settings and repeats."""
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(
        error, aiohttp.ClientSSLError
    ):
        cause = error.os_error
        if isinstance(cause, ConnectionRefusedError):
            return "nobody listens there"
        if cause.errno and cause.errno > 0:  # those of name resolution are below
            return os.strerror(cause.errno)
        return cause.strerror or str(cause)
    return str(error) or type(error).__name__
