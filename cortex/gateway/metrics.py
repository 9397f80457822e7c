"""
What the gateway counts, and the thread that serves it.

Children are bound once per model and node.  ``/metrics`` and ``/healthz`` have a thread and a port
of their own, so that a busy event loop never looks dead.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import attrs
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    make_wsgi_app,
)

from cortex.config.schema import Address
from cortex.errors import ConfigError
from cortex.fleet.model import RequestRecord

WHERE = ("model", "node")
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@attrs.frozen
class Bound:
    """The metrics of one model on one node."""

    outcomes: Callable[[str, str], Counter]
    prompt_tokens: Counter
    completion_tokens: Counter
    ttft: Histogram
    rate: Histogram
    latency: Histogram


class GatewayMetrics:
    """Counts finished requests, cold starts and evictions."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        disable_created_metrics()  # type: ignore[no-untyped-call]

        def make(kind: Any, name: str, meaning: str, *labels: str, **more: Any) -> Any:
            return kind(f"cortex_{name}", meaning, labels, registry=self.registry, **more)

        self._requests = make(Counter, "requests", "finished requests", *WHERE, "status", "outcome")
        self._tokens = make(Counter, "tokens", "tokens of finished requests", *WHERE, "kind")
        self._ttft = make(
            Histogram, "ttft_seconds", "time to the first byte", *WHERE, buckets=SECONDS
        )
        self._rate = make(Histogram, "tokens_per_second", "after the first", *WHERE, buckets=RATES)
        self._latency = make(
            Histogram, "request_seconds", "whole requests", *WHERE, buckets=SECONDS
        )
        self._cold_starts = make(Counter, "cold_starts", "loads for a request", *WHERE)
        self._evictions = make(Counter, "evictions", "unloads to make room", *WHERE)
        self._bind = functools.cache(self._bind_now)
        self.cold_starts = functools.cache(self._cold_starts.labels)
        self.evictions = functools.cache(self._evictions.labels)

    def _bind_now(self, model: str, node: str) -> Bound:
        return Bound(
            functools.cache(functools.partial(self._requests.labels, model, node)),
            self._tokens.labels(model, node, "prompt"),
            self._tokens.labels(model, node, "completion"),
            self._ttft.labels(model, node),
            self._rate.labels(model, node),
            self._latency.labels(model, node),
        )

    def count(self, record: RequestRecord) -> None:
        """Count one finished request."""
        bound = self._bind(record.model, record.node)
        bound.outcomes(str(record.status), record.outcome).inc()
        bound.latency.observe(record.duration_s)
        bound.prompt_tokens.inc(record.prompt_tokens)
        bound.completion_tokens.inc(record.completion_tokens)
        if record.ttft_s is not None:
            bound.ttft.observe(record.ttft_s)
            decode_s = record.duration_s - record.ttft_s
            if record.completion_tokens > 1 and decode_s > 0:
                bound.rate.observe((record.completion_tokens - 1) / decode_s)


class MetricsServer:
    """Serves ``/metrics`` and ``/healthz`` from a thread of its own."""

    def __init__(self, registry: CollectorRegistry, address: Address) -> None:
        prometheus = make_wsgi_app(registry)

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
            cause = error.strerror or str(error)
            raise ConfigError(
                f"cannot listen on {address}: {cause}", hint="see gateway.metrics_listen"
            ) from None
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


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        pass
