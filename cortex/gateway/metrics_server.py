"""
The thread that serves ``/metrics`` and ``/healthz``.

It has a port of its own, so that a busy event loop never looks dead.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import BaseRequestHandler, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from cortex.config.schema import Address
from cortex.connection import refused

ASK_S = 10.0  # for a request to come
SWITCH_S = 0.001  # an answer takes about ten turns with a loop that never rests


class MetricsServer:
    """Serves ``/metrics`` and ``/healthz`` from a thread of its own."""

    def __init__(self, registry: CollectorRegistry, address: Address) -> None:
        prometheus = make_wsgi_app(registry)
        sys.setswitchinterval(SWITCH_S)

        def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            match environ["PATH_INFO"]:
                case "/metrics":
                    return prometheus(environ, start_response)  # type: ignore[no-any-return]
                case "/healthz":
                    start_response("200 OK", [("Content-Type", "text/plain")])
                    return [b"ok\n"]
                case _:
                    start_response("404 Not Found", [("Content-Type", "text/plain")])
                    return [b"/metrics or /healthz\n"]

        try:
            self._server = make_server(
                address.host, address.port, app, server_class=_Server, handler_class=_Quiet
            )
        except OSError as error:
            raise refused(address, error, "--metrics-listen") from None
        self.address = Address(address.host, self._server.server_port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(
        self, address: tuple[str, int], handler: Callable[..., BaseRequestHandler]
    ) -> None:
        self.address_family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        super().__init__(address, handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:  # as asyncio has it for the other port
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        super().server_bind()


class _Quiet(WSGIRequestHandler):
    timeout = ASK_S  # each connection has a thread

    def handle(self) -> None:
        with suppress(TimeoutError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        pass
