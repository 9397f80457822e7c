"""The admin API: what the fleet looks like, and loading and unloading by hand."""

from __future__ import annotations

import asyncio
from time import monotonic, time
from urllib.parse import unquote

import attrs
import msgspec
from aiohttp import web

from cortex import __version__
from cortex.errors import InvalidRequest, ModelNotFound, RouteNotFound
from cortex.fleet.node import Fleet
from cortex.gateway.catalogue import Names
from cortex.gateway.ledger import DAY_S, Ledger, date_of
from cortex.gateway.loads import Loads
from cortex.gateway.nodes import Node, Nodes
from cortex.plugins import KINDS, Plugins
from cortex.registry import did_you_mean
from cortex.web import read_json, reply

MAX_DAYS = 3660


class ModelBody(msgspec.Struct):
    """``POST /api/v1/models/{id}/load`` and ``unload``."""

    node: str | None = None
    force: bool = False


@attrs.frozen(kw_only=True)
class Admin:
    """Handlers under ``/api/v1``."""

    nodes: Nodes
    names: Names
    loads: Loads
    ledger: Ledger
    plugins: Plugins
    began: float = attrs.field(factory=monotonic)

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Route our paths."""
        router.add_get("/api/v1/fleet", self._fleet)
        router.add_get("/api/v1/plugins", self._plugins)
        router.add_get("/api/v1/usage", self._usage)
        router.add_post("/api/v1/models/{id:.+}/load", self._load)
        router.add_post("/api/v1/models/{id:.+}/unload", self._unload)

    async def _fleet(self, _: web.Request) -> web.Response:
        return reply(
            Fleet(
                version=__version__,
                uptime_s=round(monotonic() - self.began, 1),
                nodes=tuple(node.view() for node in self.nodes),
                loads=self.loads.views(),
                catalogue=tuple(self.names.specs),
                aliases=dict(self.names.aliases),
            )
        )

    async def _plugins(self, _: web.Request) -> web.Response:
        offers = [
            {"kind": kind, "name": offer.name, "plugin": offer.plugin, "summary": offer.summary}
            for kind in KINDS
            for offer in self.plugins.offers(kind)
        ]
        return reply(
            {
                "plugins": self.plugins.loaded(),
                "offers": offers,
                "failures": [attrs.asdict(failure) for failure in self.plugins.failures],
            }
        )

    async def _usage(self, request: web.Request) -> web.Response:
        days = request.query.get("days", "30")
        if not days.isdecimal() or not 1 <= int(days) <= MAX_DAYS:
            raise InvalidRequest(f"expected 1 to {MAX_DAYS} days, got {days!r}", param="days")
        since = int(time() // DAY_S) - int(days) + 1
        usage = await asyncio.to_thread(self.ledger.usage, since)
        return reply({"since": date_of(since).isoformat(), "usage": usage})

    async def _load(self, request: web.Request) -> web.Response:
        body = await read_json(request, ModelBody)
        spec = self.names.resolve(unquote(request.match_info["id"]))
        if body.node is not None:
            self._node(body.node)
        await self.loads.ensure(spec, body.node, again=True)
        here = [node.name for node in self._having(spec.id, body.node)]
        return reply({"status": "loaded", "model_id": spec.id, "node": next(iter(here), None)})

    async def _unload(self, request: web.Request) -> web.Response:
        body = await read_json(request, ModelBody)
        spec = self.names.resolve(unquote(request.match_info["id"]))
        if body.node is not None:
            self._node(body.node)
        nodes = self._having(spec.id, body.node)
        if not nodes:
            where = f"node {body.node}" if body.node else "any node"
            raise ModelNotFound(f"model {spec.id!r} is not loaded on {where}")
        for node in nodes:
            await self.loads.unload(node, spec.id, body.force)
        names = ", ".join(node.name for node in nodes)
        return reply({"status": "unloaded", "model_id": spec.id, "node": names})

    def _node(self, name: str) -> Node:
        if (node := self.nodes.get(name)) is None:
            known = {node.name: node for node in self.nodes}
            raise RouteNotFound(f"no node is called {name!r}", hint=did_you_mean(name, known))
        return node

    def _having(self, model: str, name: str | None) -> list[Node]:
        return [n for n in self.nodes if model in n.models and name in (None, n.name)]
