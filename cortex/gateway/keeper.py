"""
What the gateway does by itself, once a second.

It frees seats whose answer nobody reads, unloads what nobody uses, loads what is wanted from the
start, has devices re-packed, and keeps what it has learned.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from math import inf
from time import monotonic
from typing import Any

from cortex.errors import CortexError
from cortex.fleet.model import ModelSpec
from cortex.gateway.catalogue import Names
from cortex.gateway.defrag import Defrag
from cortex.gateway.loads import Loads
from cortex.gateway.node import Node
from cortex.gateway.nodes import Nodes
from cortex.gateway.placement import state_of
from cortex.gateway.queue import Queues
from cortex.gateway.requests import Requests
from cortex.gateway.sizes import Sizes

EVERY_S = 1.0
UNREAD_S = 60.0  # as long as a body may pause, or a node: who is only slow, or on a train, is back
RETRY_S, MAX_RETRY_S = 2.0, 300.0
log = logging.getLogger(__name__)


class Keeper:
    """Runs until cancelled; its clock is monotonic."""

    def __init__(
        self,
        *,
        nodes: Nodes,
        names: Names,
        loads: Loads,
        queues: Queues[Any],
        requests: Requests,
        sizes: Sizes,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._nodes = nodes
        self._names = names
        self._loads = loads
        self._queues = queues
        self._requests = requests
        self._sizes = sizes
        self._tasks = tasks
        self._defrag = Defrag(nodes=nodes, names=names, loads=loads, queues=queues, tasks=tasks)
        self._closed = False
        self._preloaded: set[str] = set()
        self._again: dict[str, float] = {}  # when to try a preload that failed
        self._pauses: dict[str, float] = {}
        loads.needs_mb.update(sizes.read(names.specs))

    async def run(self) -> None:
        """Tick until closed."""
        while not self._closed:
            self.tick(monotonic())
            if self._sizes.are_news(self._loads.needs_mb, self._names.specs):
                sizes = dict(self._loads.needs_mb)
                await asyncio.to_thread(self._sizes.write, sizes, self._names.specs)
            await asyncio.sleep(EVERY_S)

    def close(self) -> None:
        """Start nothing more."""
        self._closed = True
        self._defrag.stop()

    def stop(self) -> None:
        """Keep what was learned since the last tick."""
        self._defrag.stop()
        self._sizes.write(self._loads.needs_mb, self._names.specs)

    def tick(self, now: float) -> None:
        """Start what is due."""
        self._free_seats()
        self._names.learn()
        for node, model in list(self._idle(now)):
            log.info("unload %s from %s: nobody has used it", model, node.name)
            node.unloading(model)  # from now on no request goes to it
            self._tasks.create_task(self._unload(node, model), name=f"unload {model}")
        for spec in list(self._wanted(now)):
            self._again[spec.id] = inf  # until it has failed
            self._tasks.create_task(self._preload(spec), name=f"preload {spec.id}")
        self._defrag.tick()

    def _free_seats(self) -> None:
        """Break off the answers that nobody has read for `UNREAD_S`, if others wait for a seat."""
        for recording in self._requests.recordings():
            node, exchange = self._nodes.get(recording.node), recording.exchange
            if node is None or exchange is None or exchange not in node.exchanges:
                continue
            unread_s, model = exchange.unread_s(), recording.model
            if unread_s > UNREAD_S and (model in self._queues or model in node.closing):
                log.warning(
                    "request %s is broken off: its client has read nothing for %.0f s, and others"
                    " wait for its seat, %s on %s",
                    *(recording.id, unread_s, model, node.name),
                )
                exchange.abandon()

    def _idle(self, now: float) -> Iterator[tuple[Node, str]]:
        """Yield what has been idle for the time to live of its model."""
        for node in self._nodes:
            for model in node.models.values():
                spec = self._names.specs.get(model.id)
                if spec is None or not spec.ttl_s or node.is_upstream or not model.routable:
                    continue
                if node.busy(model.id):
                    node.last_used[model.id] = now  # by somebody, perhaps not through us
                    continue
                loaded_at = node.loaded_at.get(model.id, now)
                since = max(node.last_used.get(model.id, loaded_at), loaded_at)
                held = node.name in spec.pinned_on or model.id in self._queues
                if node.healthy and not held and now - since >= spec.ttl_s:
                    yield node, model.id

    async def _unload(self, node: Node, model: str) -> None:
        try:
            await self._loads.unload(node, model, force=False)
        except CortexError as error:
            log.info("%s stays on %s: %s", model, node.name, error)

    def _wanted(self, now: float) -> Iterator[ModelSpec]:
        """Yield what is to be loaded from the start, and was not yet."""
        specs = [spec for spec in self._names.specs.values() if spec.preload]
        self._preloaded &= {spec.id for spec in specs}
        for spec in specs:
            if spec.id in self._preloaded or self._loads.view(spec.id) is not None:
                continue
            state = state_of(spec.id, self._nodes)
            if state == "loaded":
                self._preloaded.add(spec.id)
                self._again.pop(spec.id, None)
            elif state == "absent" and now >= self._again.get(spec.id, 0.0):
                yield spec

    async def _preload(self, spec: ModelSpec) -> None:
        try:
            await self._loads.ensure(spec, again=True)
        except CortexError as error:
            pause_s = self._pauses.get(spec.id, RETRY_S)
            self._pauses[spec.id] = min(2 * pause_s, MAX_RETRY_S)
            self._again[spec.id] = monotonic() + pause_s
            log.warning("preload of %s: %s; again in %g s", spec.id, error, pause_s)
