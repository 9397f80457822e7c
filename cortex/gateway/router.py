"""Which node answers a request: one that has the model loaded, else one it is loaded on now."""

from __future__ import annotations

import asyncio

from cortex.api import RoutingStrategy
from cortex.chat.request import RequestHead
from cortex.errors import ModelLoading, NoNodeAvailable
from cortex.fleet.model import Candidate, ModelSpec
from cortex.gateway.loads import Loads
from cortex.gateway.nodes import Node, Nodes
from cortex.gateway.placement import state_of


class Router:
    """Routes at once where it can, and waits for a load, bounded, where it must."""

    def __init__(
        self, nodes: Nodes, loads: Loads, strategy: RoutingStrategy, max_wait_s: float
    ) -> None:
        self._nodes = nodes
        self._loads = loads
        self._strategy = strategy
        self._max_wait_s = max_wait_s

    async def route(
        self, head: RequestHead, spec: ModelSpec, dialect: str, avoid: Node | None = None
    ) -> tuple[Node, str]:
        """
        Return the node to ask, and how it came to have the model.

        Args:
            head: The request.
            spec: What it asks for, in *dialect*.
            dialect: See *spec*.
            avoid: A node to ask only if no other can be.

        Raises:
            CortexError: No node can answer, or not in time.
        """
        if (node := self._choose(head, spec, dialect, avoid)) is not None:
            return node, "loaded"
        is_cold = state_of(spec.id, self._nodes) == "absent" and self._loads.view(spec.id) is None
        how = "cold-load" if is_cold else "joined-load"
        try:
            async with asyncio.timeout(self._max_wait_s):
                while node is None:
                    self._check_dialect(spec, dialect)
                    await self._loads.ensure(spec)
                    node = self._choose(head, spec, dialect, avoid)
        except TimeoutError:
            raise self._too_slow(spec) from None
        return node, how

    def is_only(self, node: Node, spec: ModelSpec, dialect: str) -> bool:
        """Tell whether *node* can be asked now, and no other."""
        return [n for n in self._nodes if n.serves(spec.id, dialect)] == [node]

    def _choose(
        self, head: RequestHead, spec: ModelSpec, dialect: str, avoid: Node | None
    ) -> Node | None:
        nodes = {node.name: node for node in self._nodes if node.serves(spec.id, dialect)}
        if not nodes:
            return None
        if avoid is not None and len(nodes) > 1:
            nodes.pop(avoid.name, None)
        if len(nodes) == 1:
            return next(iter(nodes.values()))
        candidates = [
            Candidate(node=name, in_flight=node.in_flight[spec.id], queued=node.queued(spec.id))
            for name, node in nodes.items()
        ]
        return nodes[self._strategy.choose(head, candidates).node]

    def _check_dialect(self, spec: ModelSpec, dialect: str) -> None:
        if state_of(spec.id, self._nodes) == "loaded":
            raise NoNodeAvailable(f"no node that has {spec.id} loaded speaks {dialect}")

    def _too_slow(self, spec: ModelSpec) -> ModelLoading:
        job = self._loads.view(spec.id)
        details = {} if job is None else {"state": job.stage, "node": job.node}
        if job is not None and job.progress is not None:
            details |= {"progress": job.progress, "eta_s": job.eta_s}  # type: ignore[dict-item]
        return ModelLoading(
            f"{spec.id} is not loaded after {self._max_wait_s:g} s",
            retry_after_s=job.eta_s if job else None,
            details=details,
        )
