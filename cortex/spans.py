"""
Spans of requests, and their way to an OpenTelemetry collector.

The one module that imports opentelemetry: `cortex.tracing` imports it where traces are wanted.  A
thread sends what has ended, in batches; what a collector does not take in time is lost, and neither
a request nor the stop waits for it.  Names are those of OpenTelemetry's conventions for generative
AI where they have one.  Neither a prompt nor an answer nor a key is in a span.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from threading import Thread
from time import time_ns
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from aiohttp import web
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cortex import __version__
from cortex.api import Operation, ReplyEncoder
from cortex.chat.events import ChatEvent, Failed, Finished, Usage, total_usage
from cortex.errors import CortexError
from cortex.fleet.model import RequestRecord
from cortex.hookspecs import Role

CLOSE_S = 2.0
MAX_WAITING = 2048  # spans that wait for the collector; then the oldest go
MAX_VALUE = 256  # characters of an attribute: clients choose some
OPERATIONS: Mapping[Operation, str] = {
    "chat": "chat",
    "embed": "embeddings",
    "count": "count_tokens",  # ours: the conventions have none
}
COMPLETIONS = "openai-completions"  # the dialect whose chats are bare texts
W3C = TraceContextTextMapPropagator()
Value = str | bool | int | float | Sequence[str]
log = logging.getLogger(__name__)


class Tracing:
    """Makes the spans of this process, a *role*, and sends them to the collector at *endpoint*."""

    def __init__(self, endpoint: str, sample: float, service: str | None, role: Role) -> None:
        self._exporter = Exporter(endpoint)
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample)),
            resource=Resource.create(
                {"service.name": service or f"cortex-{role}", "service.version": __version__}
            ),
            span_limits=SpanLimits(max_span_attribute_length=MAX_VALUE),
            shutdown_on_exit=False,  # it would wait longer than `close`
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(self._exporter, max_queue_size=MAX_WAITING)
        )
        self._tracer = self._provider.get_tracer("cortex", __version__)
        # It would say of every bad header, and of every span too many, that it is one.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

    def begin(self, request: web.Request, dialect: str, operation: Operation) -> Span | None:
        """
        Begin the span of a request, as a child of its client's if that names one.

        Returns:
            None where the request asks for no model's work.
        """
        if operation not in OPERATIONS:
            return None
        name = "text_completion" if dialect == COMPLETIONS else OPERATIONS[operation]
        began_ns = time_ns()
        span = self._tracer.start_span(
            name, W3C.extract(request.headers), trace.SpanKind.SERVER, start_time=began_ns
        )
        begun = Span(span, name, began_ns)
        if span.is_recording():
            host, port = (request.get_extra_info("sockname") or (None, None))[:2]
            begun.say({"server.address": host, "server.port": port, "cortex.dialect": dialect})
        return begun

    async def close(self, _: web.Application | None = None) -> None:
        """Send what has ended, and return when that is done or `CLOSE_S` are over."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def end() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # nobody waited, and the loop is over
                loop.call_soon_threadsafe(done.set)

        Thread(target=end, name="last traces", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await done.wait()
        self._exporter.shutdown()


class Span:
    """One request of a trace."""

    def __init__(self, span: trace.Span, operation: str, began_ns: int) -> None:
        self._span = span
        self._operation = operation
        self._began_ns = began_ns
        self._error: str | None = None

    def propagate(self, headers: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
        """Return *headers* that have one of *names*, with this span, and no other, as parent."""
        given = {n: headers[n] for n in names if n in headers and n not in W3C.fields}
        W3C.inject(given, trace.set_span_in_context(self._span))
        return given

    def say(self, attributes: Mapping[str, Value | None]) -> None:
        """Add what is known of *attributes*."""
        self._span.set_attributes({k: v for k, v in attributes.items() if v is not None})

    def finished(self, record: RequestRecord, *, asked: str, code: str, is_cold: bool) -> None:
        """
        End the span of a gateway's request.

        Args:
            record: Of the request.
            asked: What its client calls the model.
            code: Of the error that was its answer, if it was one of ours.
            is_cold: It waited for a load.
        """
        if record.outcome == "error":
            self._error = code or str(record.status)
        if self._span.is_recording():
            self._name(asked or record.model or None, record.model or None)
            self.say(of_record(record, is_cold=is_cold))
            if record.ttft_s is not None:
                self._span.add_event("first token", timestamp=self._at(record.ttft_s))
        self._end(self._at(record.duration_s))

    def answered(self, model: str, usage: Usage) -> None:
        """Add what an answer took on a neuron."""
        if self._span.is_recording():
            self._name(model, model)
            self.say(of_usage(usage))

    def watching(self, encoder: ReplyEncoder, model: str, n: int) -> ReplyEncoder:
        """Return *encoder*, which adds what the answers, *n* a prompt, took on a neuron."""
        self._name(model, model)
        return WatchedEncoder(encoder, self, model, n)

    def failed(self, error: CortexError) -> None:
        """Note that an answer broke off."""
        self._error = error.code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """End the span of a neuron's request."""
        status: int | None = HTTPStatus.OK
        outcome = "error" if self._error else "ok"
        if isinstance(error, CortexError):
            status, outcome, self._error = error.status, "error", error.code
        elif isinstance(error, asyncio.CancelledError | ConnectionError):
            status, outcome = None, "cancelled"
        elif error is not None:
            status, outcome = HTTPStatus.INTERNAL_SERVER_ERROR, "error"
            self._error = type(error).__name__
        self.say({"http.response.status_code": status, "cortex.outcome": outcome})
        self._end(None)

    def _at(self, seconds: float) -> int:
        return self._began_ns + round(seconds * 1e9)  # whatever the clock has been set to since

    def _name(self, asked: str | None, answers: str | None) -> None:
        if answers:  # a name that is no model's is no name of a span
            self._span.update_name(f"{self._operation} {answers}")
        self.say(
            {
                "gen_ai.operation.name": self._operation,
                "gen_ai.provider.name": "cortex",
                "gen_ai.request.model": asked,
                "gen_ai.response.model": answers,
            }
        )

    def _end(self, at_ns: int | None) -> None:
        if self._error is not None:
            self.say({"error.type": self._error})
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end(at_ns)


class WatchedEncoder:
    """A `cortex.api.ReplyEncoder` whose events a span is told of."""

    def __init__(self, encoder: ReplyEncoder, span: Span, model: str, n: int) -> None:
        self.content_type = encoder.content_type
        self.keep_alive = encoder.keep_alive
        self._encoder = encoder
        self._span = span
        self._model = model
        self._n = n
        self._usages: dict[int, Usage] = {}

    def feed(self, event: ChatEvent, choice: int = 0) -> bytes:
        if isinstance(event, Finished):
            self._usages[choice] = event.usage
            self._span.answered(self._model, total_usage(self._usages, self._n))
        elif isinstance(event, Failed):
            self._span.failed(event.error)
        return self._encoder.feed(event, choice)


def of_record(record: RequestRecord, *, is_cold: bool) -> dict[str, Value | None]:
    """Return the attributes that say how a gateway's request went."""
    return {
        "gen_ai.request.stream": record.stream or None,
        "gen_ai.response.time_to_first_chunk": record.ttft_s if record.stream else None,
        "gen_ai.usage.input_tokens": record.prompt_tokens or None,
        "gen_ai.usage.output_tokens": record.completion_tokens or None,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens or None,
        "http.response.status_code": record.status or None,
        "cortex.outcome": record.outcome,
        "cortex.request_id": record.id,
        "cortex.principal": record.principal or None,
        "cortex.node": record.node or None,
        "cortex.queue_s": record.queued_s,
        "cortex.ttft_s": record.ttft_s,
        "cortex.retried": record.retried or None,
        "cortex.resumed": record.resumed or None,
        "cortex.cold": is_cold or None,
    }


def of_usage(usage: Usage) -> dict[str, Value | None]:
    """Return the attributes that say what an answer took on a neuron."""
    return {
        "gen_ai.usage.input_tokens": usage.prompt_tokens or None,
        "gen_ai.usage.output_tokens": usage.completion_tokens or None,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens or None,
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens or None,
        "cortex.queue_ms": usage.queue_ms,
        "cortex.prefill_ms": usage.prefill_ms,
        "cortex.decode_ms": usage.decode_ms,
    }


class Heard(logging.Handler):
    """Keeps the first line a logger says."""

    def __init__(self) -> None:
        super().__init__()
        self.first = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.first = self.first or record.getMessage()


class Exporter(SpanExporter):
    """Sends batches, and says once that a collector stops taking them or takes them again."""

    def __init__(self, endpoint: str) -> None:
        self._sender: SpanExporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._collector = urlsplit(endpoint).netloc.rpartition("@")[2]
        self._fails = self._is_closed = False
        self._heard = Heard()
        said = logging.getLogger(OTLPSpanExporter.__module__)
        said.setLevel(logging.WARNING)
        said.propagate = False  # of every batch and every try
        said.addHandler(self._heard)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._heard.first = ""
        try:
            result = self._sender.export(spans)
        except Exception as error:  # noqa: BLE001 - whatever it is, the batch is lost
            result, self._heard.first = SpanExportResult.FAILURE, str(error)
        fails = result is not SpanExportResult.SUCCESS
        if fails and not self._fails:
            why = self._heard.first
            log.warning("the collector at %s takes no traces: %s", self._collector, why)
        elif self._fails and not fails:
            log.info("the collector at %s takes traces again", self._collector)
        self._fails = fails
        return result

    def shutdown(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._sender.shutdown()
