"""The gateway: its parts put together, and its own few routes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Literal

import aiohttp
from aiohttp import web

from cortex import __version__, tls
from cortex.api import Dialect, EvictionPolicy, Operation, RoutingStrategy
from cortex.config.schema import Catalogue, GatewayConfig
from cortex.errors import ConfigError, CortexError, ShuttingDown
from cortex.events import Events
from cortex.fleet.model import ModelCard
from cortex.gateway import chat
from cortex.gateway.accounts import Accounts
from cortex.gateway.admin import Admin
from cortex.gateway.answers import PATHS, GatewayHealth, NodeCount, Unservable
from cortex.gateway.audit import Audit
from cortex.gateway.auth import ADMIN, KEYS, OPEN, PRINCIPAL, Auth, route_of
from cortex.gateway.catalogue import Names
from cortex.gateway.gauges import FleetCollector
from cortex.gateway.keeper import Keeper
from cortex.gateway.ledger import Ledger
from cortex.gateway.loads import Loads
from cortex.gateway.loop_delay import measure_forever
from cortex.gateway.metrics import GatewayMetrics
from cortex.gateway.node import Node
from cortex.gateway.node_logs import NodeLogs
from cortex.gateway.nodes import Nodes
from cortex.gateway.orders import Orders
from cortex.gateway.poller import first_round, poll_forever
from cortex.gateway.queue import Queues
from cortex.gateway.recording import Recording
from cortex.gateway.reload import Difference, Read, Reload
from cortex.gateway.requests import Requests, over
from cortex.gateway.router import Router, Waiting
from cortex.gateway.sizes import Sizes, forget
from cortex.gateway.translation import Translators
from cortex.gateway.watch import Watch
from cortex.logs import Logs
from cortex.openapi import Program, Surface, add_document
from cortex.plugins import Plugins
from cortex.replies import OPERATIONS, Replies
from cortex.systemd import Service
from cortex.tracing import open_tracing
from cortex.web import Handler, add_dialects, application, error_response, reply, request_id

SURFACE = Surface(title="cortex gateway", paths=PATHS, is_open=OPEN, admin=ADMIN, keys=KEYS)
CLIENT_LEFT = 499  # nginx's status for a client that closed the connection


class Gateway:
    """One gateway, from its start to its stop."""

    def __init__(
        self,
        *,
        config: GatewayConfig,
        catalogue: Catalogue,
        plugins: Plugins,
        where: str,
        session: aiohttp.ClientSession,
        tasks: asyncio.TaskGroup,
        read: Read | None = None,
        service: Service | None = None,
        logs: Logs | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.metrics, self.events = GatewayMetrics(), Events()
        self._plugins, self._tasks = plugins, tasks
        self._logs, self._node_logs = logs or Logs(), NodeLogs()
        self._background: list[asyncio.Task[None]] = []
        self.config, self.catalogue = config, catalogue
        self._where, self._session = where, session
        self._strategy = build_strategy(config, plugins, where)
        self._policy = build_policy(config, plugins, where)
        self.tls = tls.listener(config.gateway.tls, f"{where}: gateway.tls.")
        self.auth = Auth.of(config.auth, plugins, where)
        self._ledger = Ledger(config.ledger.path)
        self._audit = Audit(config.audit.path, where)
        self._accounts = Accounts(self._ledger)
        self._tracing = open_tracing(config.tracing, "gateway")
        self._dialects = build_dialects(plugins, config.gateway.dialects, where)
        self.nodes = Nodes([Node.of(entry, session) for entry in config.nodes], plugins, clock)
        self.names = Names(catalogue, self.nodes, plugins)
        self._orders = Orders(config.gateway.state_path, self.names, self.nodes)
        self.queues: Queues[Waiting] = Queues(config.queue.max_depth)
        self.loads = Loads(
            config=config,
            nodes=self.nodes,
            names=self.names,
            policy=self._policy,
            metrics=self.metrics,
            queues=self.queues,
            tasks=tasks,
        )
        self.requests = Requests(self.loads)
        self._keeper = self._make_keeper(tasks)
        self._translators = Translators(every_dialect(config, plugins, where))
        self._router = Router(
            nodes=self.nodes,
            loads=self.loads,
            queues=self.queues,
            strategy=self._strategy,
            translators=self._translators,
            config=config.queue,
        )
        self._replies = Replies(config.replies)
        self._reload = Reload(
            read or self.current, self.current, self.adopt, service or Service({}), self.events
        )
        self._watch = Watch(self.nodes, self.loads, self.events)
        self.metrics.registry.register(FleetCollector(self.nodes, self.queues))
        plugins.gather("cortex_register_collectors", registry=self.metrics.registry, role="gateway")

    def _make_keeper(self, tasks: asyncio.TaskGroup) -> Keeper:
        return Keeper(
            nodes=self.nodes,
            names=self.names,
            loads=self.loads,
            queues=self.queues,
            requests=self.requests,
            sizes=Sizes(self.config.gateway.state_path),
            tasks=tasks,
        )

    def application(self) -> web.Application:
        """Return the aiohttp application."""
        app = application(self._authenticate)
        add_dialects(app, self._dialects, self)
        app.router.add_get("/", self._root)
        app.router.add_get("/health", self._health)
        admin = Admin(
            nodes=self.nodes,
            names=self.names,
            loads=self.loads,
            orders=self._orders,
            ledger=self._ledger,
            router=self._router,
            queues=self.queues,
            requests=self.requests,
            reload=self._reload,
            events=self.events,
            watch=self._watch,
            plugins=self._plugins,
            logs=self._logs,
            node_logs=self._node_logs,
        )
        admin.add_routes(app.router)
        add_document(app, SURFACE)
        app.on_cleanup.append(self._replies.close)
        if self._tracing is not None:
            app.on_cleanup.append(self._tracing.close)
        return app

    async def start(self) -> None:
        """Learn from the neurons what is loaded, and keep learning."""
        self._ledger.open()
        self._audit.open()
        self._orders.restore()
        await first_round(self.nodes, self.nodes)
        self._poll(self.nodes)
        watching = self._tasks.create_task(self._watch.run(), name="watch")
        self._background.append(watching)
        keeping = self._tasks.create_task(self._keeper.run(), name="keeper")
        self._background.append(keeping)
        tending = self._tasks.create_task(self._router.tend_forever(), name="queues")
        measuring = self._tasks.create_task(
            measure_forever(self.metrics.loop_is_late), name="loop delay"
        )
        self._background += [tending, measuring]

    def _poll(self, nodes: Iterable[Node]) -> None:
        self._background = [task for task in self._background if not task.done()]
        for node in nodes:
            polling = poll_forever(node, self.nodes)
            self._background.append(self._tasks.create_task(polling, name=f"poll {node.name}"))

    async def adopt(self, config: GatewayConfig, catalogue: Catalogue) -> None:
        """
        Put another configuration in force, all at once.

        Raises:
            ConfigError: It cannot be; nothing has changed.
        """
        plugins, where, old = self._plugins, self._where, self.config
        auth = Auth.of(config.auth, plugins, where)
        every_dialect(config, plugins, where)
        strategy, policy = self._strategy, self._policy
        if config.routing != old.routing:
            strategy = build_strategy(config, plugins, where)
        if config.eviction != old.eviction:
            policy = build_policy(config, plugins, where)
        nodes = [self.nodes.kept(e) or Node.of(e, self._session) for e in config.nodes]
        new = [node for node in nodes if self.nodes.get(node.name) is not node]
        await first_round(new, self.nodes)  # so that what they have loaded is not loaded again
        contexts = await asyncio.to_thread(lambda: [*map(tls.toward, config.nodes)])
        tls.renew(self.tls, config.gateway.tls, f"{where}: gateway.tls.")
        # From here on nothing waits and nothing raises.
        self.config, self.catalogue = config, catalogue
        self.auth, self._strategy, self._policy = auth, strategy, policy
        for node, entry, context in zip(nodes, config.nodes, contexts, strict=True):
            node.adopt(entry, self._session, context)
        self.nodes.adopt(nodes)
        for known in (self.loads.needs_mb, self.names.abilities):
            forget(known, self.names.specs, catalogue)
        self.names.adopt(catalogue)
        self.queues.max_depth = config.queue.max_depth
        self.loads.adopt(config, policy)
        self._router.adopt(strategy, config.queue)
        self._poll(new)
        await self._orders.keep()  # of nodes that went they are gone

    def current(self) -> tuple[GatewayConfig, Catalogue]:
        """Return the configuration in force."""
        return self.config, self.catalogue

    async def reload(self) -> Difference:
        """Read the configuration again; raises `ReloadRefused` if it cannot be used."""
        return await self._reload.run()

    async def drain(self, drain_s: float) -> None:
        """Refuse what is new and who waits; return once all answers are out, or cut off."""
        why = ShuttingDown("the gateway is about to stop")
        self.requests.close(why)
        self._router.close(why)
        self._keeper.close()
        self.events.close()
        self._logs.end()
        self._node_logs.end()
        self.loads.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self.requests.idle()
        self.hurry()

    def hurry(self) -> None:
        """Cut off what is under way."""
        self.requests.cancel_all(ShuttingDown("the gateway stopped before the answer was whole"))

    def stop(self) -> None:
        """End the polling and close what is open to the neurons."""
        for task in self._background:
            task.cancel()
        self.loads.stop()
        self._keeper.stop()
        for node in self.nodes:
            node.client.close()
        self._ledger.close()
        self._audit.close()

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        route = route_of(request)
        try:
            principal = request[PRINCIPAL] = self.auth.admit(route, request.headers)
        except CortexError as error:
            self._audit.refused(request, error)
            raise
        if route.startswith(ADMIN):
            return await self._audit.watch(request, principal.name, handler)
        return await handler(request)

    def cards(self, request: web.Request, /) -> Sequence[ModelCard]:
        """Return what ``/v1/models`` lists for who asks."""
        principal = request[PRINCIPAL]
        return [
            card
            for card in self.names.cards()
            if principal.allows(card.id, str(card.extra.get("alias_of", card.id)))
        ]

    async def serve(
        self,
        request: web.Request,
        name: str,
        dialect: Dialect,
        operation: Operation,
    ) -> web.StreamResponse:
        """Answer one inference request, and record it exactly once."""
        principal, account = request[PRINCIPAL], None
        recording = Recording(
            id=request_id(request), dialect=name, operation=operation, principal=principal
        )
        if self._tracing is not None:
            recording.span = self._tracing.begin(request, name, operation)
        entry = self.requests.enter(recording)
        try:
            if operation in OPERATIONS:
                answer = await self._replies.serve(
                    request, name, dialect, operation, principal.name
                )
                recording.status, recording.outcome = answer.status, "ok"
                return answer
            self.requests.check_open()
            account = self._accounts.enter(principal)
            return await chat.serve(
                request,
                dialect,
                recording,
                names=self.names,
                nodes=self.nodes,
                router=self._router,
                replies=self._replies,
                translators=self._translators,
                resumes=self.config.routing.resume,
            )
        except CortexError as error:
            response = error_response(request, error)
            recording.status, recording.code = response.status, error.code
            return response
        except asyncio.CancelledError:
            recording.outcome = "cancelled"
            recording.status = recording.status or CLIENT_LEFT
            if entry.why is None:
                raise
            return chat.ended(request, dialect, recording, entry.why)
        except Exception:
            recording.status = 500
            raise
        finally:
            record = recording.close()
            if account is not None:
                self._accounts.leave(account, record)
            self.requests.leave(entry, record)
            self._audit.note(request, record)
            if self.events:
                self.events.publish("request", over(record, record.duration_s))
            self.metrics.count(record)
            self._plugins.notify("cortex_on_request_finished", record=record)

    async def _root(self, _: web.Request) -> web.Response:
        return reply(Program("cortex gateway", __version__))

    async def _health(self, _: web.Request) -> web.Response:
        healthy = sum(node.healthy for node in self.nodes)
        total = len(self.nodes)
        status: Literal["ok", "degraded", "impaired", "draining"] = "draining"
        if not self.requests.closed:
            status = "ok" if healthy == total else "degraded" if healthy else "impaired"
        unservable = [
            Unservable(node.name, model.id, model.servable.reason)
            for node in self.nodes
            for model in node.models.values()
            if not model.servable.ok
        ]
        return reply(GatewayHealth(status, NodeCount(healthy, total), unservable))


def build_strategy(config: GatewayConfig, plugins: Plugins, where: str) -> RoutingStrategy:
    """Build the routing strategy a configuration names; raises `ConfigError`."""
    at = f"{where}: routing.strategy"
    strategy: RoutingStrategy = plugins.choose(
        "routing strategy", config.routing.strategy, at
    ).build()
    return strategy


def build_policy(config: GatewayConfig, plugins: Plugins, where: str) -> EvictionPolicy:
    """Build the eviction policy a configuration names; raises `ConfigError`."""
    at = f"{where}: eviction.strategy"
    policy: EvictionPolicy = plugins.choose("eviction policy", config.eviction.strategy, at).build()
    return policy


def every_dialect(config: GatewayConfig, plugins: Plugins, where: str) -> dict[str, Dialect]:
    """
    Build every dialect offered: an upstream may speak one the gateway does not serve.

    Raises:
        ConfigError: An upstream speaks one that is unknown.
    """
    for number, upstream in enumerate(config.upstreams):
        for name in upstream.dialects:
            plugins.choose("dialect", name, f"{where}: upstreams[{number}].dialects")
    return {offer.name: offer.build() for offer in plugins.offers("dialect")}


def build_dialects(plugins: Plugins, only: Sequence[str] | None, where: str) -> dict[str, Dialect]:
    """
    Build the dialects the configuration names, or every one offered.

    Raises:
        ConfigError: One is unknown, or there is none.
    """
    if only is None:
        only = [offer.name for offer in plugins.offers("dialect")]
    if not only:
        raise ConfigError(f"{where}: gateway.dialects: at least one is needed")
    at = f"{where}: gateway.dialects"
    return {name: plugins.choose("dialect", name, at).build() for name in only}
