"""A whole gateway on a port of its own, and clients that see what is on the wire."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import aiohttp
import attrs
from prometheus_client import CollectorRegistry

import cortex
from cortex.config.schema import (
    Address,
    AuditSection,
    AuthSection,
    Catalogue,
    EvictionSection,
    GatewayConfig,
    GatewaySection,
    LedgerSection,
    NeuronEntry,
    PluginSettings,
    QueueSection,
    RepliesSection,
    RoutingSection,
    TlsSection,
    TracingSection,
    UpstreamEntry,
)
from cortex.fleet.model import ModelSpec, RequestRecord
from cortex.gateway.app import Gateway
from cortex.gateway.reload import Read
from cortex.logs import Logs
from cortex.plugins import Plugins
from cortex.testing import FakeNeuron, until
from cortex.web import listening

HERE = Address("127.0.0.1", 0)
ROOT = Path(__file__).parents[2]


class Recorder:
    """A plugin that keeps every record."""

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    @cortex.hookimpl
    def cortex_on_request_finished(self, record):
        self.records.append(record)


@attrs.define
class Running:
    """A gateway and a client of it."""

    address: Address
    gateway: Gateway
    records: list[RequestRecord]
    client: aiohttp.ClientSession
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}"

    async def ask(
        self, model: str = "m", status: int = 200, key: str | None = None, **more
    ) -> dict:
        """Ask for a whole answer; return its JSON, the headers under `headers`."""
        url, body = f"{self.url}/v1/chat/completions", chat(model, **more)
        async with self.client.post(url, data=body, headers=bearer(key)) as response:
            answer = await response.json()
            assert response.status == status, answer
            return {**answer, "headers": response.headers}

    async def refused(self, status: int, code: str, model: str = "m", **more) -> dict:
        """Ask, and expect an error; return it, the headers under `headers`."""
        answer = await self.ask(model, status, **more)
        assert answer["error"]["code"] == code, answer
        return {**answer["error"], "headers": answer["headers"]}

    async def stream(self, model: str = "m", **more) -> bytes:
        """Ask for a stream; return all of it."""
        body = chat(model, stream=True, **more)
        async with self.client.post(f"{self.url}/v1/chat/completions", data=body) as response:
            assert response.status == 200, await response.read()
            return await response.read()

    async def get(self, path: str, key: str | None = None) -> dict | list:
        async with self.client.get(self.url + path, headers=bearer(key)) as response:
            assert response.status == 200, await response.read()
            return await response.json()

    async def post(self, path: str, status: int = 200, **body) -> dict:
        async with self.client.post(self.url + path, json=body) as response:
            answer = await response.json()
            assert response.status == status, answer
            return answer

    def counted(self, name: str, **labels: str) -> float:
        """Return the sum of a metric over every series with *labels*."""
        return counted(self.gateway.metrics.registry, name, **labels)

    @property
    def waiting(self) -> int:
        """How many wait for a node, or for a load by hand."""
        loads = self.gateway.loads
        held = (len(q) for q in self.gateway.queues if loads.view(q.spec.id) is None)
        return sum(job.waiting for job in loads.views()) + sum(held)

    def in_flight(self) -> int:
        return sum(node.in_flight.total() for node in self.gateway.nodes)


async def ticks(gateway: Running, count: int = 3) -> None:
    """Wait until the keeper has looked a few times more."""
    seen, kept = 0, gateway.gateway._keeper
    tick = kept.tick

    def counting(now):
        nonlocal seen
        tick(now)
        seen += 1

    kept.tick = counting
    await until(lambda: seen >= count)


def bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def counted(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return sum(
        sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def chat(model: str, *, content: str = "hi", **more) -> bytes:
    messages = [{"role": "user", "content": content}]
    return json.dumps({"model": model, "messages": messages, **more}).encode()


@asynccontextmanager
async def running(
    *nodes: FakeNeuron | NeuronEntry | str,
    models: Sequence[ModelSpec] = (ModelSpec(id="m"),),
    aliases: dict[str, str] | None = None,
    strategy: str = "least-loaded",
    resume: bool = True,
    min_residency_s: float = 0.0,
    max_depth: int = 512,
    max_wait_s: float = 10.0,
    max_turn_s: float = 30.0,
    defrag_after_cycles: int = 50,
    plugins: Sequence[object] = (),
    replies: RepliesSection | None = None,
    upstreams: Sequence[UpstreamEntry] = (),
    auth: AuthSection | None = None,
    ledger: LedgerSection | None = None,
    audit: AuditSection | None = None,
    read: Read | None = None,
    tls: TlsSection | None = None,
    state_path: Path | None = None,
    tracing: TracingSection | None = None,
    logs: Logs | None = None,
) -> AsyncIterator[Running]:
    """Run a gateway in front of *nodes*: fakes, or endpoints."""
    found = Plugins(PluginSettings(only=frozenset()))
    recorder = Recorder()
    for plugin in (recorder, *plugins):
        found.manager.register(plugin)
    entries = [
        node
        if isinstance(node, NeuronEntry)
        else NeuronEntry(name=f"node{number}", endpoint=getattr(node, "endpoint", node))
        for number, node in enumerate(nodes)
    ]
    config = GatewayConfig(
        gateway=GatewaySection(tls=tls, state_path=state_path),
        neurons=tuple(entries),
        upstreams=tuple(upstreams),
        routing=RoutingSection(strategy=strategy, resume=resume),
        eviction=EvictionSection(
            min_residency_s=min_residency_s,
            max_turn_s=max_turn_s,
            defrag_after_cycles=defrag_after_cycles,
        ),
        queue=QueueSection(max_depth=max_depth, max_wait_s=max_wait_s),
        replies=replies or RepliesSection(),
        auth=auth or AuthSection(),
        ledger=ledger or LedgerSection(),
        audit=audit or AuditSection(),
        tracing=tracing or TracingSection(),
    )
    catalogue = Catalogue(models=tuple(models), aliases=aliases or {})
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        asyncio.TaskGroup() as tasks,
        aiohttp.ClientSession() as session,
        aiohttp.ClientSession(connector=connector) as client,
    ):
        gateway = Gateway(
            config=config,
            catalogue=catalogue,
            plugins=found,
            where="cortex.toml",
            session=session,
            tasks=tasks,
            logs=logs,
            read=read,
        )
        try:
            await gateway.start()
            async with listening(
                gateway.application(), HERE, drain_s=0.2, tls=gateway.tls
            ) as address:
                scheme = "http" if tls is None else "https"
                yield Running(address, gateway, recorder.records, client, scheme)
        finally:
            gateway.stop()


@asynccontextmanager
async def neuron_program(*arguments: str) -> AsyncIterator[tuple[Process, str]]:
    """Run a fake neuron as a program of its own; yield it and its endpoint."""
    command = (sys.executable, "-m", "cortex.testing", *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, cwd=ROOT)
    try:
        yield process, (await process.stdout.readline()).decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def p99(values: Sequence[float]) -> float:
    """Return what all but one in a hundred of *values* stay under."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


class Wire:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, address: Address, **more) -> Wire:
        return cls(*await asyncio.open_connection(address.host, address.port, **more))

    @classmethod
    async def slow(cls, address: Address, **more) -> Wire:
        """Connect with little room for what is not read: the sender soon has to wait."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (address.host, address.port))
        return cls(*await asyncio.open_connection(sock=sock, limit=1 << 10, **more))

    def post(self, body: bytes, version: str = "1.1", headers: str = "") -> None:
        head = f"POST /v1/chat/completions HTTP/{version}\r\nHost: x\r\n{headers}"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)

    async def head(self) -> tuple[int, dict[str, str]]:
        raw = await self.until(b"\r\n\r\n")
        first, *rest = raw.decode("latin-1").strip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in rest)
        return int(first.split()[1]), headers

    async def until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.readuntil(mark)

    async def chunks(self) -> bytes:
        """Read a chunked body to its end."""
        body = b""
        while size := int(await self.until(b"\r\n"), 16):
            body += await self.exactly(size)
            assert await self.until(b"\r\n") == b"\r\n"
        assert await self.until(b"\r\n") == b"\r\n"
        return body

    async def chunks_after(self, began: bytes) -> bytes:
        """Read on from within a chunk whose size line and data up to here are *began*."""
        size, _, data = began.partition(b"\r\n")
        data += await self.exactly(int(size, 16) - len(data))
        assert await self.until(b"\r\n") == b"\r\n"
        return data + await self.chunks()

    async def exactly(self, size: int) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.readexactly(size)

    async def rest(self) -> bytes:
        """Read until the connection ends."""
        async with asyncio.timeout(5):
            return await self.reader.read()

    def leave(self) -> None:
        self.writer.transport.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()
