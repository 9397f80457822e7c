"""
One client's connection to a server of ours: a client that is slow costs little, and not for ever.

The head of a request comes within `HEAD_S`, counted from the connection or from the head's first
byte, or the client is told so and let go.  What is written waits in the kernel, not here: with
`WRITE_BYTES` unsent, whoever writes waits.  Whether a client takes any of it only the kernel knows.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import sys
from errno import EADDRINUSE
from http import HTTPStatus
from struct import Struct

from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError

from cortex.config.schema import Address
from cortex.errors import ConfigError, CortexError, InvalidRequest, RequestTimeout
from cortex.wire import encode

HEAD_S = 10.0
WRITE_BYTES = 4 << 10
BACKLOG = 4096
ACKED, ACKED_AT = Struct("Q"), 120  # tcpi_bytes_acked of Linux's struct tcp_info
log = logging.getLogger(__name__)


async def accept(
    runner: web.AppRunner, address: Address, tls: ssl.SSLContext | None
) -> asyncio.Server:
    """
    Accept connections to a *runner* that is set up.

    Raises:
        ConfigError: The address is taken or not ours.
    """
    loop, served = asyncio.get_running_loop(), runner.server
    assert served is not None  # noqa: S101 - it is set up
    try:
        return await loop.create_server(
            lambda: ClientConnection(served, loop),
            address.host,
            address.port,
            backlog=BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=None if tls is None else HEAD_S,
        )
    except OSError as error:
        raise refused(address, error) from None


def check_free(address: Address, option: str) -> None:
    """
    Check that an *address*, which *option* is to change, can be listened on.

    Raises:
        ConfigError: It is taken or not ours.
    """
    try:
        bind(address)
    except OSError as error:
        raise refused(address, error, option) from None


def bind(address: Address) -> None:
    """
    Have an *address* for a moment.

    Raises:
        OSError: It is taken or not ours.
    """
    family, *_, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # who has the port of IPv4 has another
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind(place)


def refused(address: Address, error: OSError, option: str = "--listen") -> ConfigError:
    """Return what there is to say of an *address* that cannot be listened on."""
    cause = (error.strerror or str(error)).rpartition("): ")[2]  # asyncio adds the address
    hint = f"use {option}"
    if error.errno == EADDRINUSE:
        hint = f"stop what holds it, or {hint}"
    return ConfigError(f"cannot listen on {address}: {cause}", hint=hint)


class ClientConnection(web.RequestHandler):
    """aiohttp's connection, held to that."""

    __slots__ = ("_deadline",)

    def __init__(self, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(server, loop=loop, access_log=None)  # type: ignore[arg-type] # none
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None  # noqa: S101 - it was made
        self.transport.set_write_buffer_limits(high=WRITE_BYTES)
        self._deadline = self._loop.call_later(HEAD_S, self._give_up)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages:
            self._forget_deadline()
        elif self._deadline is None and self._awaits_head:
            self._deadline = self._loop.call_later(HEAD_S, self._give_up)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP as any bad request, and keep it out of the log."""
        if status != HTTPStatus.BAD_REQUEST:
            return super().handle_error(request, status, exc, message)
        log.debug("%s sent no valid HTTP: %s", request.remote, message)
        response = web.Response(
            body=said_of(no_http(exc, message or "")),
            status=status,
            content_type="application/json",
        )
        response.force_close()
        return response

    @property
    def _awaits_head(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self.transport is not None and self._awaits_head:
            self.transport.write(too_late())
            self.force_close()


def taken_of(transport: asyncio.BaseTransport) -> int | None:
    """
    Return how many bytes the other end of an open connection has acknowledged; None off Linux.

    What a transport still holds tells less: megabytes wait in the kernel, and a third of them must
    go before it takes more.
    """
    if sys.platform != "linux":
        return None
    sock = transport.get_extra_info("socket")
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, ACKED_AT + ACKED.size)
    acked: int = ACKED.unpack_from(info, ACKED_AT)[0]
    return acked


def too_late() -> bytes:
    """Return the answer to a request whose head did not come."""
    body = said_of(RequestTimeout(f"the head of the request did not come within {HEAD_S:g} s"))
    head = "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def no_http(error: BaseException | None, message: str) -> CortexError:
    """Return what there is to say of a request that cannot be read, for the cause aiohttp names."""
    if isinstance(error, ContentEncodingError):
        return InvalidRequest(
            "the body is packed in a way that is not known here",
            hint="send it as it is, or with Content-Encoding: gzip",
        )
    cause = message.partition("\n")[0].rstrip(":.")
    return InvalidRequest(f"the request is no valid HTTP: {cause}")


def said_of(error: CortexError) -> bytes:
    """Return the body of an error of a request whose dialect is not known."""
    said = {"message": str(error), "type": error.type, "code": error.code, "param": None}
    return encode({"error": said})
