"""A whole neuron with harness echo: in this process, or as a program of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import attrs

from cortex.config.schema import (
    Address,
    DefaultModel,
    NeuronConfig,
    PluginSettings,
    RepliesSection,
    TracingSection,
)
from cortex.events import Events
from cortex.fleet.node import Device
from cortex.logs import Logs
from cortex.neuron import discovery
from cortex.neuron.app import Neuron, build_harnesses
from cortex.neuron.models import Models
from cortex.plugins import Plugins
from cortex.web import listening

REPOSITORY = Path(__file__).parents[2]


@attrs.define
class Served:
    """A neuron and a client of it."""

    address: Address
    client: aiohttp.ClientSession
    neuron: Neuron | None = None
    process: asyncio.subprocess.Process | None = None
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}"

    async def get(self, path: str, status: int = 200, **headers: str):
        async with self.client.get(self.url + path, headers=headers) as response:
            answer = await response.json()
            assert response.status == status, answer
            return answer

    async def post(self, path: str, status: int = 200, **body: object):
        async with self.client.post(self.url + path, json=body) as response:
            answer = await response.json()
            assert response.status == status, answer
            return answer

    async def load(self, model: str, status: int = 200, **more: object):
        return await self.post("/models/load", status, model_id=model, harness="echo", **more)

    async def chat(self, model: str, content: str = "one two", status: int = 200, **more: object):
        messages = [{"role": "user", "content": content}]
        path = "/v1/chat/completions"
        return await self.post(path, status, model=model, messages=messages, **more)

    @asynccontextmanager
    async def streaming(
        self, model: str, content: str, **headers: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        messages = [{"role": "user", "content": content}]
        body = {"model": model, "messages": messages, "stream": True}
        path = self.url + "/v1/chat/completions"
        async with self.client.post(path, json=body, headers=headers) as response:
            yield response

    @asynccontextmanager
    async def events(self) -> AsyncIterator[Listener]:
        async with self.client.get(self.url + "/events") as response:
            assert response.content_type == "text/event-stream"
            yield Listener(response)


class Listener:
    """Reads server-sent events."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def next(self) -> tuple[str, dict]:
        async with asyncio.timeout(5):
            lines = (await self._response.content.readuntil(b"\n\n")).decode().strip().split("\n")
        fields = dict(line.split(": ", 1) for line in lines)
        return fields["event"], json.loads(fields["data"])

    async def until(self, name: str, **expected: object) -> dict:
        while True:
            event, data = await self.next()
            if event == name and expected.items() <= data.items():
                return data

    async def rest(self) -> bytes:
        async with asyncio.timeout(5):
            return await self._response.content.read()


@asynccontextmanager
async def serving(
    *,
    delay_s: float = 0.0,
    load_s: float = 0.0,
    used_mb: int = 0,
    token: str | None = None,
    default_models: Mapping[str, str | None] | None = None,
    plugins: Sequence[object] = (),
    harnesses: Sequence[str] = ("echo",),
    options: Mapping[str, Mapping[str, object]] | None = None,
    replies: RepliesSection | None = None,
    tracing: TracingSection | None = None,
    devices: Sequence[Device] | None = None,
    source: object = None,
    logs: Logs | None = None,
) -> AsyncIterator[Served]:
    """Run a neuron in this process; its default models are loaded once it listens."""
    found = Plugins(PluginSettings(only=frozenset()))
    for plugin in plugins:
        found.manager.register(plugin)
    config = NeuronConfig(
        token=token,
        harnesses=tuple(harnesses),
        replies=replies or RepliesSection(),
        tracing=tracing or TracingSection(),
        harness={
            "echo": {"delay_s": delay_s, "load_s": load_s, "used_mb": used_mb},
            **(options or {}),
        },
        default_models=tuple(
            DefaultModel(model_id=model, harness=harness)
            for model, harness in (default_models or {}).items()
        ),
    )
    host = discovery.discover()

    def source_of(_):
        assert source is not None, "echo needs no weights"
        return source

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        asyncio.TaskGroup() as tasks,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as client,
    ):
        events = Events()
        models = Models(devices or host.devices, tasks, events.publish, source_of)
        neuron = Neuron(config, found, host, models, events, logs=logs)
        models.harnesses = build_harnesses(config, found, models, "neuron.toml")
        app = neuron.application()
        background: list[asyncio.Task[None]] = []
        try:
            async with listening(app, Address("127.0.0.1", 0), drain_s=0.2) as address:
                background.append(tasks.create_task(neuron.activator.run(neuron.load)))
                yield Served(address, client, neuron)
        finally:
            for task in background:
                task.cancel()
            for harness in models.harnesses.values():
                await harness.aclose()
            models.stop()


@asynccontextmanager
async def program(
    folder: Path, text: str = "", command: str = "neuron", *more: str
) -> AsyncIterator[Served]:
    """Run ``cortex neuron`` (or *command*) with this configuration."""
    path = folder / f"{command}.toml"
    path.write_text(text)
    env = {name: value for name, value in os.environ.items() if "CORTEX_" not in name}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cortex", command, "--config", str(path)),
        *("--listen", "127.0.0.1:0", *more),
        env={**env, "PYTHONPATH": str(REPOSITORY), "CORTEX_PLUGINS": ""},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(15):
            line = (await process.stdout.readline()).decode()
        assert " listens on http" in line, (await process.stderr.read()).decode()
        scheme, _, where = line.partition(" listens on ")[2].partition("://")
        address = Address.parse(where.split()[0])
        async with aiohttp.ClientSession() as client:
            yield Served(address, client, process=process, scheme=scheme)
    finally:
        if process.returncode is None:
            process.kill()
        async with asyncio.timeout(10):
            await process.communicate()
