"""The admin API: what the fleet looks like, and what an operator does to it by hand."""

from __future__ import annotations

import asyncio
from time import monotonic, time
from urllib.parse import unquote

import attrs
from aiohttp import web

from cortex import __version__
from cortex.config.diff import shown
from cortex.errors import InvalidRequest, ModelNotFound, RequestCancelled, RouteNotFound
from cortex.events import Events
from cortex.fleet.model import ModelSpec
from cortex.fleet.node import Fleet
from cortex.gateway.answers import (
    MAX_DAYS,
    Cancelled,
    Drained,
    InForce,
    ModelBody,
    ModelMoved,
    OfferRow,
    PinBody,
    Pinned,
    PluginRows,
    RequestRows,
    UsageRows,
)
from cortex.gateway.catalogue import Names
from cortex.gateway.explaining import explain
from cortex.gateway.ledger import DAY_S, Ledger, date_of
from cortex.gateway.loads import Loads
from cortex.gateway.node import Node
from cortex.gateway.node_logs import NodeLogs
from cortex.gateway.nodes import Nodes
from cortex.gateway.orders import Orders
from cortex.gateway.queue import Queues
from cortex.gateway.reload import Reload
from cortex.gateway.requests import Requests
from cortex.gateway.router import Router, Waiting
from cortex.gateway.watch import Watch
from cortex.logs import Logs
from cortex.plugins import KINDS, Plugins
from cortex.registry import did_you_mean
from cortex.web import read_json, reply
from cortex.wire import whole


@attrs.frozen(kw_only=True)
class Admin:
    """Handlers under ``/api/v1``."""

    nodes: Nodes
    names: Names
    loads: Loads
    orders: Orders
    ledger: Ledger
    router: Router
    queues: Queues[Waiting]
    requests: Requests
    reload: Reload
    events: Events
    watch: Watch
    plugins: Plugins
    logs: Logs
    node_logs: NodeLogs
    began: float = attrs.field(factory=monotonic)

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Route our paths."""
        router.add_get("/api/v1/fleet", self._fleet)
        router.add_get("/api/v1/events", self._events)
        router.add_get("/api/v1/plugins", self._plugins)
        router.add_get("/api/v1/usage", self._usage)
        router.add_post("/api/v1/models/{id:.+}/load", self._load)
        router.add_post("/api/v1/models/{id:.+}/unload", self._unload)
        router.add_post("/api/v1/models/{id:.+}/pin", self._pin)
        router.add_post("/api/v1/models/{id:.+}/unpin", self._unpin)
        router.add_get("/api/v1/explain", self._explain)
        router.add_get("/api/v1/config", self._config)
        router.add_post("/api/v1/reload", self._reload)
        router.add_post("/api/v1/nodes/{name}/drain", self._drain)
        router.add_post("/api/v1/nodes/{name}/resume", self._resume)
        router.add_get("/api/v1/requests", self._requests)
        router.add_delete("/api/v1/requests/{id}", self._cancel)
        router.add_get("/api/v1/logs", self._logs)

    async def _fleet(self, _: web.Request) -> web.Response:
        return reply(self._snapshot())

    async def _events(self, request: web.Request) -> web.StreamResponse:
        self.watch.begin()
        return await self.events.stream(request, self._snapshot)

    def _snapshot(self) -> Fleet:
        return Fleet(
            version=__version__,
            uptime_s=round(monotonic() - self.began, 1),
            nodes=tuple(node.view() for node in self.nodes),
            loads=self.loads.views(),
            catalogue=tuple(self.names.specs),
            aliases=dict(self.names.aliases),
            pins=self.names.pins(),
        )

    async def _plugins(self, _: web.Request) -> web.Response:
        offers = [
            OfferRow(kind, offer.name, offer.plugin, offer.summary)
            for kind in KINDS
            for offer in self.plugins.offers(kind)
        ]
        return reply(PluginRows(self.plugins.loaded(), offers, [*self.plugins.failures]))

    async def _usage(self, request: web.Request) -> web.Response:
        said = request.query.get("days", "30")
        days = whole(said)
        if days is None or not 1 <= days <= MAX_DAYS:
            raise InvalidRequest(f"expected 1 to {MAX_DAYS} days, got {said!r}", param="days")
        since = int(time() // DAY_S) - days + 1
        usage = await asyncio.to_thread(self.ledger.usage, since)
        return reply(UsageRows(date_of(since).isoformat(), usage))

    async def _load(self, request: web.Request) -> web.Response:
        body = await read_json(request, ModelBody)
        spec = self._spec(request)
        if body.node is not None:
            self._node(body.node)
        await self.loads.ensure(spec, body.node, again=True)
        here = [node.name for node in self._having(spec.id, body.node)]
        return reply(ModelMoved("loaded", spec.id, next(iter(here), None)))

    async def _unload(self, request: web.Request) -> web.Response:
        body = await read_json(request, ModelBody)
        spec = self._spec(request)
        if body.node is not None:
            self._node(body.node)
        nodes = self._having(spec.id, body.node)
        if not nodes:
            raise not_there(spec, body.node)
        for node in nodes:
            await self.loads.unload(node, spec.id, body.force)
        names = ", ".join(node.name for node in nodes)
        return reply(ModelMoved("unloaded", spec.id, names))

    async def _pin(self, request: web.Request) -> web.Response:
        body, spec = await read_json(request, PinBody), self._spec(request)
        on = [self._node(body.node)] if body.node is not None else self._having(spec.id, None)
        if not on:
            raise not_there(spec, None)
        self.names.pin(spec, (node.name for node in on))
        return await self._pinned(spec)

    async def _unpin(self, request: web.Request) -> web.Response:
        body, spec = await read_json(request, PinBody), self._spec(request)
        self.names.unpin(spec, body.node)
        return await self._pinned(spec)

    async def _pinned(self, spec: ModelSpec) -> web.Response:
        self.nodes.wake()  # another place may be free now, or this one no more
        await self.orders.keep()
        return reply(Pinned(spec.id, self.names.pins().get(spec.id, ())))

    async def _explain(self, request: web.Request) -> web.Response:
        spec = self.names.resolve(request.query.get("model", ""))
        return reply(
            explain(
                spec, nodes=self.nodes, loads=self.loads, router=self.router, queues=self.queues
            )
        )

    async def _config(self, _: web.Request) -> web.Response:
        config, catalogue = self.reload.current()
        return reply(InForce(shown(config), shown(catalogue)))

    async def _reload(self, _: web.Request) -> web.Response:
        return reply(await self.reload.run())

    async def _drain(self, request: web.Request) -> web.Response:
        return await self._drained(request, True)

    async def _resume(self, request: web.Request) -> web.Response:
        return await self._drained(request, False)

    async def _drained(self, request: web.Request, drained: bool) -> web.Response:
        node = self._node(request.match_info["name"])
        self.nodes.drain(node, drained)
        await self.orders.keep()
        return reply(Drained(node.name, drained, node.in_flight.total()))

    async def _requests(self, _: web.Request) -> web.Response:
        return reply(RequestRows(self.requests.states()))

    async def _cancel(self, request: web.Request) -> web.Response:
        request_id = request.match_info["id"]
        why = RequestCancelled(f"request {request_id} was cancelled by an operator")
        return reply(Cancelled(request_id, self.requests.cancel(request_id, why)))

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        if (name := request.query.get("node")) is None:
            return await self.logs.answer(request)
        return await self.node_logs.answer(request, self._node(name))

    def _spec(self, request: web.Request) -> ModelSpec:
        return self.names.resolve(unquote(request.match_info["id"]))

    def _node(self, name: str) -> Node:
        if (node := self.nodes.get(name)) is None:
            known = {node.name: node for node in self.nodes}
            raise RouteNotFound(f"no node is called {name!r}", hint=did_you_mean(name, known))
        return node

    def _having(self, model: str, name: str | None) -> list[Node]:
        return [n for n in self.nodes if model in n.models and name in (None, n.name)]


def not_there(spec: ModelSpec, node: str | None) -> ModelNotFound:
    """Return the error for a model that is not where something is to be done to it."""
    where = f"node {node}" if node else "any node"
    return ModelNotFound(f"model {spec.id!r} is not loaded on {where}")
