"""
The neuron's HTTP surface.

Nothing here waits for a device: ``/health``, ``/models`` and ``/events`` answer from memory.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence
from contextlib import nullcontext
from time import monotonic
from typing import Any

import attrs
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from cortex import __version__
from cortex.api import Dialect, Harness, HarnessHost, Operation
from cortex.config.schema import NeuronConfig
from cortex.errors import InvalidRequest, NotAuthenticated, VisionUnsupported
from cortex.events import Events
from cortex.fleet.model import ModelCard, ModelSpec
from cortex.fleet.node import Health, ModelHealth
from cortex.logs import Logs
from cortex.neuron import chat, discovery
from cortex.neuron.activation import Activator
from cortex.neuron.answers import PATHS, LoadBody, Loaded, Place, Restarted, Told, UnloadBody
from cortex.neuron.metrics import NeuronCollector
from cortex.neuron.models import Models
from cortex.openapi import PATH, Program, Surface, add_document
from cortex.plugins import Plugins
from cortex.replies import OPERATIONS, Replies, Turn
from cortex.tracing import open_tracing
from cortex.web import add_dialects, application, read_body, read_json, reply
from cortex.wire import whole

REFRESH_S = 1.0
OPEN = ("/", "/health", PATH)  # what needs no token
SURFACE = Surface(title="cortex neuron", paths=PATHS, is_open=OPEN, keys=("bearer",))


class Neuron:
    """One node: its devices, harnesses and models behind HTTP."""

    def __init__(
        self,
        config: NeuronConfig,
        plugins: Plugins,
        host: discovery.Host,
        models: Models,
        events: Events,
        *,
        logs: Logs | None = None,
    ) -> None:
        self.models = models
        self.events = events
        self._logs = logs or Logs()
        self.activator = Activator(config.default_models)
        self.draining = False
        self._config = config
        self._plugins = plugins
        self._host = host
        self._began = monotonic()
        self._dialects = {offer.name: offer.build() for offer in plugins.offers("dialect")}
        self._replies = Replies(config.replies)
        self._tracing = open_tracing(config.tracing, "neuron")
        self._metrics = CollectorRegistry(auto_describe=False)
        self._metrics.register(NeuronCollector(self.health))
        plugins.gather("cortex_register_collectors", registry=self._metrics, role="neuron")

    def application(self) -> web.Application:
        """Return the aiohttp application."""
        app = application(self._authenticate)
        add_dialects(app, self._dialects, self)
        app.router.add_get("/", self._root)
        app.router.add_get("/health", self._health)
        app.router.add_get("/discovery", self._discovery)
        app.router.add_get("/models", self._models)
        app.router.add_post("/models/load", self._load)
        app.router.add_post("/models/tokenizer", self._tokenizer)
        app.router.add_post("/models/unload", self._unload)
        app.router.add_get("/models/{id:.+}/endpoint", self._endpoint)
        app.router.add_post("/devices/{index}/restart", self._restart)
        app.router.add_get("/events", self._events)
        app.router.add_get("/logs", self._logs.answer)
        app.router.add_get("/metrics", self._prometheus)
        add_document(app, SURFACE)
        app.on_shutdown.append(self._on_shutdown)
        app.on_cleanup.append(self._replies.close)
        if self._tracing is not None:
            app.on_cleanup.append(self._tracing.close)
        return app

    async def refresh(self) -> None:
        """Keep the devices' figures fresh."""
        while True:
            await self.models.refresh()
            await asyncio.sleep(REFRESH_S)

    async def load(self, spec: ModelSpec, devices: Sequence[int] = (), wait: bool = True) -> Any:
        """Load a model with the harness it names, or the one the plugins choose."""
        return await self.models.load(spec, self._harness(spec), devices, wait)

    def _harness(self, spec: ModelSpec) -> str:
        harness = spec.harness
        if harness is None:
            harness = self._plugins.manager.hook.cortex_choose_harness(
                spec=spec, device=self.models.devices[0]
            )
        if harness not in self.models.harnesses:
            known = ", ".join(self.models.harnesses)
            raise InvalidRequest(
                f"this node has no harness {harness!r}", hint=f"it has {known}", param="harness"
            )
        return str(harness)

    def health(self) -> Health:
        """Return what ``GET /health`` answers."""
        states = self.models.device_states
        devices = tuple(
            attrs.evolve(device, state=states.get(device.index, "ok"))
            for device in self.models.devices
        )
        status = "ok" if all(device.state == "ok" for device in devices) else "degraded"
        return Health(
            status="draining" if self.draining else status,
            uptime_secs=round(monotonic() - self._began, 3),
            version=__version__,
            devices=devices,
            activation=self.activator.state,
            models=tuple(self._model_health()),
        )

    def _model_health(self) -> list[ModelHealth]:
        rows = []
        for model in self.models.list():
            stats = self.models.harnesses[model.harness].stats(model.id)
            rows.append(ModelHealth(id=model.id, state=model.status, **attrs.asdict(stats)))
        return rows

    # Routes.

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        token = self._config.token
        if token is not None and request.path not in OPEN:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(errors="surrogateescape"), token.encode()):
                raise NotAuthenticated("this neuron wants its token as a bearer")
        response: web.StreamResponse = await handler(request)
        return response

    async def _root(self, _: web.Request) -> web.Response:
        return reply(Program("cortex neuron", __version__))

    async def _health(self, _: web.Request) -> web.Response:
        return reply(self.health())

    async def _discovery(self, _: web.Request) -> web.Response:
        return reply(
            attrs.evolve(
                self._host.discovery,
                harnesses=tuple(self.models.harnesses),
                dialects=tuple(self._dialects),
            )
        )

    async def _models(self, _: web.Request) -> web.Response:
        return reply(self.models.list())

    async def _load(self, request: web.Request) -> web.Response:
        body = await read_json(request, LoadBody)
        spec = body.spec()
        entry = await self.load(spec, body.devices, body.wait)
        if entry.status == "loading":
            return reply(Told("loading", spec.id), 202)
        used_mb = entry.running.used_bytes >> 20 if entry.running else 0
        return reply(Loaded(entry.status, spec.id, round(entry.load_s, 2), used_mb))

    async def _tokenizer(self, request: web.Request) -> web.Response:
        spec = (await read_json(request, LoadBody)).spec()
        await self.models.prepare(spec, self._harness(spec))
        return reply(Told("ready", spec.id))

    async def _unload(self, request: web.Request) -> web.Response:
        body = await read_json(request, UnloadBody)
        await self.models.unload(body.model_id, body.force)
        return reply(Told("unloaded", body.model_id))

    async def _restart(self, request: web.Request) -> web.Response:
        said = request.match_info["index"]
        if (index := whole(said)) is None:
            raise InvalidRequest(f"expected the index of a device, got {said!r}", param="index")
        await self.models.restart(index)
        return reply(Restarted("restarted", index))

    async def _endpoint(self, request: web.Request) -> web.Response:
        self.models.serving(request.match_info["id"])
        return reply(Place(f"http://{request.host}", [*self._dialects]))

    async def _events(self, request: web.Request) -> web.StreamResponse:
        return await self.events.stream(request, self._snapshot)

    def _snapshot(self) -> dict[str, Any]:
        return {"health": self.health(), "models": self.models.list()}

    async def _prometheus(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._metrics), content_type="text/plain")

    async def _on_shutdown(self, _: web.Application) -> None:
        self.draining = True
        self.events.close()
        self._logs.end()

    def cards(self, _: web.Request, /) -> list[ModelCard]:
        """Return what ``/v1/models`` lists."""
        return [
            ModelCard(
                id=model.id,
                context=model.limit.context or None,
                output=model.limit.output or None,
                loaded=True,
                capabilities=model.capabilities,
                used_bytes=model.vram_used_mb << 20,
                extra={"capabilities": model.capabilities},
            )
            for model in self.models.list()
            if model.routable
        ]

    async def serve(
        self,
        request: web.Request,
        name: str,
        dialect: Dialect,
        operation: Operation,
    ) -> web.StreamResponse:
        """Answer one inference request."""
        if operation in OPERATIONS:
            return await self._replies.serve(request, name, dialect, operation)
        node, span = self._host.discovery.hostname, None
        if self._tracing is not None:
            span = self._tracing.begin(request, name, operation)
        with span or nullcontext():
            turn = Turn(await read_body(request))
            if "x-cortex-joined" not in request.headers:  # else a gateway keeps them
                turn = await self._replies.join(name, dialect, turn.body)
            try:
                return await chat.serve(
                    request, turn, dialect, operation, models=self.models, node=node, span=span
                )
            except VisionUnsupported as error:
                if seeing := request.headers.get("x-cortex-seeing"):
                    error.hint = f"these do: {seeing}"
                raise


def build_harnesses(
    config: NeuronConfig, plugins: Plugins, host: HarnessHost, where: str
) -> dict[str, Harness]:
    """
    Build the harnesses the configuration names, or every one offered.

    Raises:
        ConfigError: One is unknown, has wrong options, or its engine is not installed; or the
            file has options for one that nobody offers.
    """
    for name in config.harness:
        plugins.choose("harness", name, f"{where}: harness")
    for name, table in config.sources.items():
        plugins.choose("source", name, f"{where}: sources").read(table, f"{where}: sources.{name}")
    names = config.harnesses
    if names is None:
        names = tuple(offer.name for offer in plugins.offers("harness"))
    built = {}
    for name in names:
        offer = plugins.choose("harness", name, f"{where}: harnesses")
        table = config.harness.get(name, {})
        built[name] = offer.build(host, table=table, where=f"{where}: harness.{name}")
    return built
