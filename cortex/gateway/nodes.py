"""
The nodes of the fleet as the gateway knows them.

One writer, the event loop: the poller writes what a neuron says, requests count themselves in and
out.  Whoever waits for anything to change waits on `Nodes.changed`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from time import monotonic

from cortex.config.schema import NeuronEntry, UpstreamEntry
from cortex.fleet.node import Health, NodeModel
from cortex.gateway.breaker import RetryBudget
from cortex.gateway.node import Node
from cortex.gateway.ranked import Ranked
from cortex.plugins import Plugins

MISSES_TO_EJECT = 3
log = logging.getLogger(__name__)


class Nodes:
    """
    All nodes, by name.

    Attributes:
        clock: What loads and queues go by.
        retries: What may be spent on trying again.
    """

    def __init__(
        self, nodes: Sequence[Node], plugins: Plugins, clock: Callable[[], float] = monotonic
    ) -> None:
        self.clock = clock
        self._nodes = {node.name: node for node in nodes}
        self._having: dict[str, dict[str, Node]] = {}
        self._room: Ranked[Node] = Ranked()
        self._plugins = plugins
        self._change: asyncio.Event = asyncio.Event()
        self._concerned: set[str] | None = set()
        self.retries = RetryBudget()
        for node in nodes:
            self._index(node, ())

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, name: str) -> Node | None:
        return self._nodes.get(name)

    def having(self, model: str) -> Collection[Node]:
        """Return the nodes that show *model*, in whatever state."""
        return self._having.get(model, {}).values()

    def with_room(self, need_mb: int) -> Sequence[Node]:
        """Return the nodes where as much is free on a device, and not reserved."""
        return self._room.with_at_least(need_mb)

    def reserve(self, node: Node, model: str, share_mb: int, devices: tuple[int, ...]) -> None:
        """Note that a load of *model* is about to take as much of each of these devices."""
        node.reserved[model] = share_mb, devices
        self._rank(node)

    def release(self, node: Node, model: str) -> None:
        """Note that the load of *model* on *node* is over."""
        node.reserved.pop(model, None)
        self._rank(node)

    def kept(self, entry: NeuronEntry | UpstreamEntry) -> Node | None:
        """Return the node that *entry* describes, perhaps otherwise than before; None if new."""
        node = self._nodes.get(entry.name)
        if node is None or type(node.entry) is not type(entry):
            return None
        return node if node.entry.endpoint == entry.endpoint else None

    def adopt(self, nodes: Sequence[Node]) -> None:
        """Let these be the fleet; those that are not among them get nothing new."""
        now = {node.name: node for node in nodes}
        for name, node in self._nodes.items():
            if now.get(name) is not node:
                node.gone = True
                if name in now:
                    now[name].drained = node.drained
        self._nodes, self._having, self._room = now, {}, Ranked()
        for node in nodes:
            self._index(node, ())
        self.wake()

    def drain(self, node: Node, drained: bool) -> None:
        """Send nothing new to *node*, or let it be used again."""
        node.drained = drained
        log.info("node %s: %s", node.name, "drained" if drained else "in use again")
        self.wake()

    async def changed(self, timeout_s: float) -> None:
        """Wait for any change of any node, at most *timeout_s*."""
        with suppress(TimeoutError):  # wait_for of Python 3.11 may swallow a cancellation
            async with asyncio.timeout(timeout_s):
                await self._change.wait()

    def wake(self, models: Iterable[str] | None = None) -> None:
        """Wake whoever waits in `changed`; what changed concerns these models, or any."""
        if models is None:
            self._concerned = None
        elif self._concerned is not None:
            self._concerned.update(models)
        self._change.set()
        self._change = asyncio.Event()

    def concerned(self) -> set[str] | None:
        """Return the models that the changes since the last call concern; None is any."""
        concerned, self._concerned = self._concerned, set()
        return concerned

    def answered(self, node: Node, health: Health, models: Sequence[NodeModel]) -> None:
        """Take in what a node said."""
        before, now = node.models, self.clock()
        node.count_cycles(health, models)
        node.misses, node.error, node.health = 0, None, health
        node.models = {model.id: model for model in models}
        for model in models:
            if model.routable and model.id not in node.loaded_at:
                node.loaded_at[model.id] = now
                node.last_used.setdefault(model.id, now - (model.last_used_s or 0.0))
            if model.id not in before or before[model.id].status != model.status:
                self._plugins.notify("cortex_on_model_changed", node=node.name, model=model)
        for gone in node.loaded_at.keys() - {m.id for m in models if m.routable}:
            del node.loaded_at[gone]
        for gone in before.keys() - node.models.keys():
            if not node.in_flight[gone]:
                del node.in_flight[gone]
        if self._nodes.get(node.name) is node:
            self._index(node, before)
        was_healthy = node.healthy
        self._set_healthy(node, True)
        self.wake({*before, *node.models} if was_healthy else None)

    def _index(self, node: Node, before: Iterable[str]) -> None:
        for model in before:
            if model not in node.models:
                self._having[model].pop(node.name, None)
        for model in node.models:
            self._having.setdefault(model, {})[node.name] = node
        self._rank(node)

    def _rank(self, node: Node) -> None:
        if self._nodes.get(node.name) is node:
            self._room.put(node.name, node.room_mb(), node)

    def missed(self, node: Node, error: str, is_slow: bool = False) -> None:
        """
        Count a poll that failed; too many put the node out of service.

        Not so while tokens flow from it and it *is_slow*: a busy node is not a dead one.
        """
        if node.is_new:  # later it is a change that is told of
            log.warning("node %s: %s", node.name, error)
        node.error = error
        if is_slow and node.heard_of:
            return
        node.misses += 1
        if node.misses >= MISSES_TO_EJECT or node.health is None:
            self._set_healthy(node, False)
            self.wake()

    def refused(self, node: Node, error: str) -> None:
        """Put a node that refuses connections out of service until it answers a poll."""
        node.error, node.misses = error, MISSES_TO_EJECT
        self._set_healthy(node, False)
        self.wake()

    def failed(self, node: Node, model: str, error: str) -> None:
        """
        Count a request without an answer; too many in a row put the node out of service.

        Not so the last that has *model*: a node that answers some requests is better than none.
        """
        has_another = any(other.serves(model) for other in self if other is not node)
        if has_another and node.breaker.opens(monotonic()):
            self.refused(node, error)

    def _set_healthy(self, node: Node, healthy: bool) -> None:
        if node.healthy == healthy:
            return
        node.healthy = healthy
        node.ejections += not healthy
        log.log(
            logging.INFO if healthy else logging.WARNING,
            "node %s: %s",
            node.name,
            node.error or "ok",
        )
        self._plugins.notify("cortex_on_node_changed", node=node.name, healthy=healthy)
