"""
Tells listeners what changes in the fleet.

It compares what it sees with what it saw whenever a node changes, so nobody who changes something
has to tell it; what comes and goes in between is not told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

import attrs

from cortex.events import Events
from cortex.gateway.loads import Loads
from cortex.gateway.node import Node
from cortex.gateway.nodes import Nodes

LOOK_S = 1.0  # how old news may be at most
PAUSE_S = 0.05  # between two looks
Key = tuple[str, str, str]  # what it is, node, model
Seen = Mapping[Key, object]


class Watch:
    """Looks for as long as somebody listens."""

    def __init__(self, nodes: Nodes, loads: Loads, events: Events) -> None:
        self._nodes = nodes
        self._loads = loads
        self._events = events
        self._seen: Seen | None = None

    def begin(self) -> None:
        """Note how things are: somebody is about to get a snapshot of them."""
        if self._seen is None:
            self._seen = self._look()

    async def run(self) -> None:
        """Look whenever something may have changed."""
        while True:
            await self._nodes.changed(LOOK_S)
            await asyncio.sleep(PAUSE_S)
            if not len(self._events):
                self._seen = None
                continue
            before, now = self._seen, self._look()
            for event, data in news(now if before is None else before, now):
                self._events.publish(event, data)
            self._seen = now

    def _look(self) -> Seen:
        seen: dict[Key, object] = {}
        for node in self._nodes:
            seen["node", node.name, ""] = state(node)
            for model in node.models.values():
                seen["model", node.name, model.id] = attrs.evolve(model, last_used_s=None)
        for job in self._loads.views():
            seen["load", "", job.model] = job
        return seen


def state(node: Node) -> dict[str, object]:
    """Return what is told of a node."""
    return {
        "node": node.name,
        "healthy": node.healthy,
        "drained": node.drained,
        "error": node.error,
    }


def news(before: Seen, now: Seen) -> Iterator[tuple[str, object]]:
    """Yield the events that lead from one look to the next."""
    for key in {**before, **now}:
        kind, node, model = key
        is_there, data = key in now, now.get(key)
        if key in before and is_there and before[key] == data:
            continue
        match kind:
            case "node":
                yield "node", data if is_there else {"node": node, "gone": True}
            case "model":
                gone = {"id": model, "status": "unloaded"}
                yield "model", {"node": node, "model": data if is_there else gone}
            case _:
                yield ("load_progress", data) if is_there else ("load_ended", {"model": model})
