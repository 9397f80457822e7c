"""Which node answers a request: one that has the model loaded, else one it is loaded on now."""

from __future__ import annotations

import asyncio

from cortex.api import RoutingStrategy
from cortex.chat.request import RequestHead
from cortex.errors import (
    ModelLoading,
    NoNodeAvailable,
    OperationUnsupported,
    UpstreamUnreachable,
)
from cortex.fleet.model import Candidate, ModelSpec
from cortex.gateway.loads import Loads, load_body
from cortex.gateway.nodes import Node, Nodes
from cortex.gateway.placement import feasible_on, state_of
from cortex.gateway.translation import Translators

TOKENIZER_TIMEOUT_S = 300.0  # it may have to be fetched


class Router:
    """Routes at once where it can, and waits for a load, bounded, where it must."""

    def __init__(
        self,
        nodes: Nodes,
        loads: Loads,
        strategy: RoutingStrategy,
        translators: Translators,
        max_wait_s: float,
    ) -> None:
        self._nodes = nodes
        self._translators = translators
        self._loads = loads
        self._strategy = strategy
        self._max_wait_s = max_wait_s

    async def route(
        self, head: RequestHead, spec: ModelSpec, avoid: Node | None = None
    ) -> tuple[Node, str]:
        """
        Return the node to ask, and how it came to have the model.

        Args:
            head: The request.
            spec: What it asks for.
            avoid: A node to ask only if no other can be.

        Raises:
            CortexError: No node can answer, or not in time.
        """
        if (node := self._choose(head, spec, avoid)) is not None:
            return node, "loaded"
        self._check_spoken(head, spec)
        if head.operation == "count":
            return await self._with_tokenizer(spec), "tokenizer"
        is_cold = state_of(spec.id, self._nodes) == "absent" and self._loads.view(spec.id) is None
        how = "cold-load" if is_cold else "joined-load"
        try:
            async with asyncio.timeout(self._max_wait_s):
                while node is None:
                    await self._loads.ensure(spec)
                    if (node := self._choose(head, spec, avoid)) is None:
                        self._check_spoken(head, spec)
        except TimeoutError:
            raise self._too_slow(spec) from None
        return node, how

    def is_only(self, node: Node, head: RequestHead) -> bool:
        """Tell whether *node* can be asked now, and no other."""
        return list(self._able(head)) == [node]

    def _able(self, head: RequestHead) -> list[Node]:
        """Return the nodes that can answer now, only those that need no translation if any do."""
        serving = [node for node in self._nodes if node.serves(head.model)]
        ways = [self._translators.spoken(node, head) for node in serving]
        wanted = {head.dialect} if head.dialect in ways else {*ways} - {None}
        return [node for node, way in zip(serving, ways, strict=True) if way in wanted]

    def _choose(self, head: RequestHead, spec: ModelSpec, avoid: Node | None) -> Node | None:
        nodes = {node.name: node for node in self._able(head)}
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

    def _check_spoken(self, head: RequestHead, spec: ModelSpec) -> None:
        having = [node.name for node in self._nodes if node.serves(spec.id)]
        if having and not self._able(head):
            raise OperationUnsupported(
                f"{spec.id} is on {', '.join(having)}, which cannot be asked in {head.dialect}"
            )

    async def _with_tokenizer(self, spec: ModelSpec) -> Node:
        """Return a node that can count tokens for a model nobody has loaded."""
        able = [n for n in self._nodes if n.healthy and feasible_on(spec, n) is None]
        said = []
        for node in able:
            try:
                await node.client.post("/models/tokenizer", load_body(spec), TOKENIZER_TIMEOUT_S)
            except UpstreamUnreachable as error:
                said.append(f"{node.name}: {error}")
            else:
                return node
        raise NoNodeAvailable(
            f"no node can count the tokens of {spec.id}: {'; '.join(said) or 'none could hold it'}"
        )

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
