"""Traces: what a collector learns of a request, and that nothing depends on the collector."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from threading import enumerate as threads

import attrs
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

from cortex import spans
from cortex.config.schema import Address, TracingSection
from cortex.errors import DeviceUnavailable
from cortex.fleet.model import ModelSpec
from cortex.spans import Exporter
from cortex.testing import FakeNeuron, until
from cortex.web import listening
from tests.gateway.running import HERE, Wire, chat, running
from tests.neuron.serving import serving

ROOT = Path(__file__).parents[2]
DOCUMENTED = (ROOT / "docs" / "operations.md").read_text("utf-8")
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SERVER, OK, ERROR = 2, 0, 2  # of OTLP: the kind of a span, and its statuses unset and error


@attrs.frozen(kw_only=True)
class Told:
    """A span as a collector gets it."""

    name: str
    service: str
    trace: str
    id: str
    parent: str
    kind: int
    status: int
    begin_ns: int
    end_ns: int
    events: dict[str, int]
    attributes: dict[str, object]
    state: str


class Collector:
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.status = 200
        self.address = Address("127.0.0.1", 0)

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self.status == 200:
            self.raw.append(body)
        said = ExportTraceServiceResponse().SerializeToString()
        kind = "application/x-protobuf"
        return web.Response(body=said, content_type=kind, status=self.status)

    @property
    def section(self) -> TracingSection:
        return TracingSection(endpoint=f"http://{self.address}")

    @property
    def spans(self) -> list[Told]:
        """What came, by when it began."""
        found = []
        for raw in self.raw:
            for resource in ExportTraceServiceRequest.FromString(raw).resource_spans:
                of = {a.key: plain(a.value) for a in resource.resource.attributes}
                for scope in resource.scope_spans:
                    found += [told(span, str(of["service.name"])) for span in scope.spans]
        return sorted(found, key=lambda span: span.begin_ns)

    def of(self, service: str) -> Told:
        """Return the one span of a service."""
        (found,) = (span for span in self.spans if span.service == service)
        return found


def told(span, service: str) -> Told:
    return Told(
        name=span.name,
        service=service,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        kind=span.kind,
        status=span.status.code,
        begin_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        events={event.name: event.time_unix_nano for event in span.events},
        attributes={a.key: plain(a.value) for a in span.attributes},
        state=span.trace_state,
    )


def plain(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    return getattr(value, kind)


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    collector, app = Collector(), web.Application()
    app.router.add_post("/v1/traces", collector.take)
    async with listening(app, HERE, drain_s=0.2) as collector.address:
        yield collector


@asynccontextmanager
async def traced(collector: Collector, *, load_s: float = 0.0, loaded: bool = True):
    """Run a gateway before a neuron, both of which tell the collector."""
    section = collector.section
    specs = [ModelSpec(id="m", harness="echo")]
    async with serving(tracing=section, load_s=load_s) as neuron:
        if loaded:
            await neuron.load("m")
        aliases = {"nick": "m"}
        async with running(neuron.url, models=specs, aliases=aliases, tracing=section) as fleet:
            yield fleet


def parent(flags: str = "01") -> dict[str, str]:
    return {"traceparent": f"00-{TRACE}-{PARENT}-{flags}", "tracestate": "them=1"}


async def ask(fleet, status: int = 200, headers=None, path="/v1/chat/completions", **more) -> bytes:
    body = chat(more.pop("model", "m"), **more)
    async with fleet.client.post(fleet.url + path, data=body, headers=headers) as response:
        assert response.status == status
        return await response.read()


async def test_a_request_is_a_span_of_the_gateway_with_one_of_the_neuron_in_it(collector):
    async with traced(collector) as fleet:
        await ask(fleet, model="nick", content="one two three", headers={"x-request-id": "r1"})
    outer, inner = collector.of("cortex-gateway"), collector.of("cortex-neuron")
    assert (outer.trace, outer.parent) == (inner.trace, "")
    assert inner.parent == outer.id
    assert {(span.name, span.kind, span.status) for span in (outer, inner)} == {
        ("chat m", SERVER, OK)
    }
    assert outer.begin_ns <= inner.begin_ns <= inner.end_ns
    assert outer.begin_ns < outer.end_ns
    shared = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "cortex",
        "gen_ai.response.model": "m",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 3,
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "cortex.outcome": "ok",
        "cortex.dialect": "openai-chat",
    }
    own = {
        "gen_ai.request.model": "nick",
        "server.port": fleet.address.port,
        "cortex.request_id": "r1",
        "cortex.principal": "anonymous",
        "cortex.node": "node0",
    }
    assert {**shared, **own}.items() <= outer.attributes.items()
    assert {**shared, "gen_ai.request.model": "m"}.items() <= inner.attributes.items()
    assert outer.attributes["cortex.queue_s"] <= outer.attributes["cortex.ttft_s"]
    assert {"cortex.queue_ms", "cortex.prefill_ms", "cortex.decode_ms"} <= inner.attributes.keys()


async def test_a_stream_says_when_its_first_token_came(collector):
    async with traced(collector) as fleet:
        await ask(fleet, stream=True, content="one two")
    outer, inner = collector.of("cortex-gateway"), collector.of("cortex-neuron")
    first_s = outer.attributes["gen_ai.response.time_to_first_chunk"]
    assert outer.attributes["gen_ai.request.stream"] is True
    assert outer.events == {"first token": outer.begin_ns + round(first_s * 1e9)}
    assert outer.attributes["gen_ai.usage.output_tokens"] == 2
    assert inner.attributes["gen_ai.usage.output_tokens"] == 2
    assert inner.attributes["http.response.status_code"] == 200


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/completions", {"prompt": "one"}, "text_completion m"),
        ("/v1/messages/count_tokens", {}, "count_tokens m"),
    ],
)
async def test_the_operation_is_what_was_asked_for(collector, path, body, name):
    async with traced(collector) as fleet:
        await ask(fleet, path=path, **body)
    assert {span.name for span in collector.spans} == {name}
    assert len(collector.spans) == 2


async def test_what_asks_for_no_models_work_is_no_span(collector):
    async with traced(collector) as fleet:
        await fleet.get("/v1/models")
        await ask(fleet, path="/v1/responses", input="hi")
        (span,) = [record for record in fleet.records if record.dialect == "openai-responses"]
        async with fleet.client.get(f"{fleet.url}/v1/responses/resp_{span.id}") as response:
            await response.read()
        assert len(fleet.records) == 2
    assert len(collector.spans) == 2  # of the response that was made


async def test_a_clients_trace_goes_on(collector):
    async with traced(collector) as fleet:
        await ask(fleet, headers=parent())
    outer, inner = collector.of("cortex-gateway"), collector.of("cortex-neuron")
    assert {outer.trace, inner.trace} == {TRACE}
    assert (outer.parent, inner.parent) == (PARENT, outer.id)
    assert {outer.state, inner.state} == {"them=1"}


async def test_a_client_that_is_not_sampled_is_not_and_the_neuron_learns_of_it(collector):
    async with (
        FakeNeuron(["m"]) as node,
        running(node, tracing=collector.section) as fleet,
    ):
        await ask(fleet, headers=parent("00"))
        await ask(fleet, headers=parent("01"))
    silent, heard = (headers["traceparent"].split("-") for headers in node.headers)
    assert (silent[1], int(silent[3], 16) & 1) == (TRACE, 0)
    assert silent[2] != PARENT
    assert heard == ["00", TRACE, collector.of("cortex-gateway").id, "01"]


@pytest.mark.parametrize(("sample", "traces"), [(0.0, 1), (1.0, 2)])
async def test_who_has_decided_nothing_is_sampled_by_the_configuration(collector, sample, traces):
    section = attrs.evolve(collector.section, sample=sample, service="front")
    async with FakeNeuron(["m"]) as node, running(node, tracing=section) as fleet:
        await ask(fleet)
        await ask(fleet, headers=parent())
    assert len(collector.spans) == traces
    assert {span.service for span in collector.spans} == {"front"}
    flags = [int(headers["traceparent"][-2:], 16) for headers in node.headers]
    assert [flag & 1 for flag in flags] == [traces - 1, 1]


async def test_a_context_that_is_none_is_not_passed_on(collector):
    async with FakeNeuron(["m"]) as node, running(node, tracing=collector.section) as fleet:
        await ask(fleet, headers={"traceparent": "00-1-2-3", "tracestate": "them=1"})
    (headers,), span = node.headers, collector.of("cortex-gateway")
    assert headers["traceparent"].startswith(f"00-{span.trace}-{span.id}-")
    assert "tracestate" not in headers


async def test_without_a_collector_a_context_passes_unread():
    async with FakeNeuron(["m"]) as node, running(node) as fleet:
        await ask(fleet, headers=parent())
    assert node.headers[0].items() >= parent().items()


# What goes wrong.


async def test_an_unknown_model_is_an_error_and_no_name_of_a_span(collector):
    async with traced(collector) as fleet:
        await ask(fleet, 404, model="x" * 1000)
    span = collector.of("cortex-gateway")
    assert (span.name, span.status) == ("chat", ERROR)
    assert span.attributes["error.type"] == "model_not_found"
    assert span.attributes["http.response.status_code"] == 404
    assert span.attributes["gen_ai.request.model"] == "x" * 256
    assert "gen_ai.response.model" not in span.attributes


async def test_a_neurons_error_is_one_of_both_spans(collector):
    async with traced(collector) as fleet:
        await ask(fleet, 400, path="/v1/chat/completions", temperature="hot")
    outer, inner = collector.of("cortex-gateway"), collector.of("cortex-neuron")
    assert {outer.status, inner.status} == {ERROR}
    assert inner.parent == outer.id
    assert outer.attributes["error.type"] == "400"  # its body is passed on unread
    assert inner.attributes["error.type"] == "invalid_value"
    assert inner.attributes["http.response.status_code"] == 400


async def test_a_stream_that_breaks_off_says_so(collector):
    async with FakeNeuron(["m"]) as node, running(node, tracing=collector.section) as fleet:
        node.ending, node.breaks_after = "midway", 1
        await ask(fleet, stream=True)
    span = collector.of("cortex-gateway")
    assert (span.status, span.attributes["error.type"]) == (ERROR, "upstream_died")
    assert span.attributes["http.response.status_code"] == 200


async def test_a_request_that_went_elsewhere_names_where_it_was_before(collector):
    async with (
        FakeNeuron(["m"]) as busy,
        FakeNeuron(["m"]) as node,
        running(busy, node, tracing=collector.section) as fleet,
    ):
        busy.refusal = DeviceUnavailable("not now")
        await ask(fleet)
    span = collector.of("cortex-gateway")
    assert (span.status, span.attributes["cortex.retried"]) == (OK, ["node0"])
    assert span.attributes["cortex.node"] == "node1"
    assert span.id in node.headers[0]["traceparent"]


async def test_a_stream_that_went_on_elsewhere_is_one_span(collector):
    async with (
        FakeNeuron(["m"]) as dead,
        FakeNeuron(["m"]) as node,
        running(dead, node, tracing=collector.section) as fleet,
    ):
        dead.ending, dead.breaks_after = "midway", 1
        await ask(fleet, stream=True)
    span = collector.of("cortex-gateway")
    assert (span.attributes["cortex.resumed"], span.attributes["cortex.node"]) == (True, "node1")
    assert span.id in node.headers[0]["traceparent"]


async def test_a_request_that_waited_for_a_load_is_cold(collector):
    async with traced(collector, loaded=False) as fleet:
        await ask(fleet)
        await ask(fleet)
    cold = [s.attributes.get("cortex.cold") for s in collector.spans if "gateway" in s.service]
    assert cold == [True, None]


async def test_a_client_that_left_is_no_error(collector):
    async with FakeNeuron(["m"]) as node, running(node, tracing=collector.section) as fleet:
        node.ending = "hang"
        async with await Wire.to(fleet.address) as wire:
            wire.post(chat("m"))
            await until(lambda: node.headers)
        await until(lambda: fleet.records)
    span = collector.of("cortex-gateway")
    assert (span.status, span.attributes["cortex.outcome"]) == (OK, "cancelled")
    assert "error.type" not in span.attributes


async def test_neither_prompt_nor_answer_nor_key_is_told(collector):
    async with traced(collector) as fleet:
        await ask(fleet, content="sesame", headers={"Authorization": "Bearer hunter2"})
        await ask(fleet, content="sesame", stream=True, headers={"x-api-key": "hunter2"})
    assert len(collector.spans) == 4
    assert not re.search(rb"sesame|hunter2", b"".join(collector.raw))


async def test_a_header_that_is_no_text_costs_no_other_span_its_place(collector):
    async with FakeNeuron(["m"]) as node, running(node, tracing=collector.section) as fleet:
        async with await Wire.to(fleet.address) as wire:
            body = chat("m")
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Request-Id: \xff\r\n"
            wire.writer.write(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            await wire.head()
        await ask(fleet)
    assert len(collector.spans) == 2


async def test_every_attribute_is_documented_and_no_other(collector):
    section = collector.section
    async with traced(collector) as fleet:
        await ask(fleet, stream=True)
        await ask(fleet, 404, model="absent")
    async with traced(collector, loaded=False) as fleet:
        await ask(fleet)
    async with (
        FakeNeuron(["m"]) as dead,
        FakeNeuron(["m"]) as node,
        running(dead, node, tracing=section) as fleet,
    ):
        dead.ending, dead.breaks_after = "midway", 1
        await ask(fleet, stream=True)
    async with (
        FakeNeuron(["m"]) as busy,
        FakeNeuron(["m"]) as node,
        running(busy, node, tracing=section) as fleet,
    ):
        busy.refusal, node.cached_tokens = DeviceUnavailable("not now"), 1
        await ask(fleet)
    said = {name for span in collector.spans for name in span.attributes}
    text = DOCUMENTED.partition("\n## Tracing\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(.+?)` \|", text, re.MULTILINE)
    assert sorted(rows) == sorted(said | {"gen_ai.usage.reasoning.output_tokens"})


# The collector is away.


@pytest.fixture
def patient(monkeypatch) -> None:
    """Have batches sent at once and tried for a minute, and the stop wait for little of that."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    monkeypatch.setattr(spans, "CLOSE_S", 0.2)


@pytest.mark.usefixtures("patient")
async def test_a_collector_that_is_away_delays_neither_answers_nor_the_stop(caplog):
    with socket.socket() as taken:  # and nobody listens
        taken.bind(("127.0.0.1", 0))
        section = TracingSection(endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}")
        async with asyncio.timeout(20):
            async with FakeNeuron(["m"]) as node, running(node, tracing=section) as fleet:
                for _ in range(3):
                    await ask(fleet)
        await until(lambda: not senders())
    assert [record.name for record in caplog.records].count("cortex.spans") == 1


@pytest.mark.usefixtures("patient")
async def test_a_collector_that_says_nothing_delays_neither_answers_nor_the_stop():
    held: list[asyncio.StreamWriter] = []

    async def hold(_, writer):
        held.append(writer)

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    section = TracingSection(endpoint=f"http://127.0.0.1:{port}")
    try:
        async with asyncio.timeout(20):
            async with FakeNeuron(["m"]) as node, running(node, tracing=section) as fleet:
                await ask(fleet)
                await until(lambda: held)
                await ask(fleet)
        assert senders()
    finally:
        server.close()
        for writer in held:
            writer.transport.abort()
    await until(lambda: not senders(), 15.0)


def senders() -> list[str]:
    return [t.name for t in threads() if t.name.startswith(("OtelBatch", "last traces"))]


async def test_that_a_collector_takes_nothing_is_said_once_with_its_reason(collector, caplog):
    caplog.set_level(logging.INFO)
    exporter = Exporter(f"http://someone:secret@{collector.address}")
    try:
        for collector.status in (403, 403, 200, 200, 403):
            await asyncio.to_thread(exporter.export, [ended()])
    finally:
        exporter.shutdown()
    said = [record.getMessage() for record in caplog.records if record.name == "cortex.spans"]
    where = f"the collector at {collector.address} takes"
    assert [line.partition(": ")[0] for line in said] == [
        f"{where} no traces",
        f"{where} traces again",
        f"{where} no traces",
    ]
    assert "403" in said[0]
    assert not any(record.name.startswith("opentelemetry") for record in caplog.records)


def ended() -> ReadableSpan:
    span = TracerProvider(shutdown_on_exit=False).get_tracer("test").start_span("a")
    span.end()
    assert isinstance(span, ReadableSpan)
    return span


# The extra.

WITHOUT = "import sys; sys.modules['opentelemetry'] = None\n"


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=25, check=False, cwd=ROOT
    )


@pytest.mark.parametrize("command", ["serve", "neuron"])
def test_without_the_extra_a_program_that_is_to_trace_says_what_to_install(tmp_path, command):
    file = tmp_path / "a.toml"
    file.write_text('[tracing]\nendpoint = "http://127.0.0.1:4318"\n')
    if command == "serve":
        (tmp_path / "models.toml").touch()
    main = "from cortex.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    done = run(WITHOUT + main, command, "--config", str(file), "--listen", "127.0.0.1:0")
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("cortex ")]
    assert "has no module 'opentelemetry'" in line
    assert "pip install 'opentelemetry-exporter-otlp-proto-http>=" in line


def test_a_program_that_does_not_trace_needs_no_extra():
    done = run(WITHOUT + "import cortex.gateway.app, cortex.neuron.app")
    assert done.returncode == 0, done.stderr
