"""Says what would become of a request for a model now, and why; it changes nothing."""

from __future__ import annotations

import attrs

from cortex.chat.request import RequestHead
from cortex.fleet.model import ModelSpec
from cortex.fleet.node import Explanation, Verdict
from cortex.gateway.loads import Loads
from cortex.gateway.node import Node
from cortex.gateway.nodes import Nodes
from cortex.gateway.placement import Placement, state_of
from cortex.gateway.queue import Queues
from cortex.gateway.router import Router, Waiting


def explain(
    spec: ModelSpec, *, nodes: Nodes, loads: Loads, router: Router, queues: Queues[Waiting]
) -> Explanation:
    """Ask router and placement what they would do with a chat for *spec*, and every node alone."""
    head = RequestHead(id="explain", model=spec.id, dialect="openai-chat")
    verdicts = tuple(_verdict(spec, node, loads) for node in nodes)
    load, reason = loads.view(spec.id), None
    chosen = router.would_choose(head)
    waiting = queues.length(spec.id)
    if chosen is not None and not waiting:
        how, name = "loaded", chosen.name
    elif state_of(spec.id, nodes) == "loaded":
        how, name, reason = "queued", None, "every node that serves it has all its seats taken"
    elif load is not None:
        how, name, reason = "joined-load", load.node, load.stage
    elif isinstance(found := loads.would_place(spec, nodes), Placement):
        how, name = "cold-load", found.node.name
    else:
        how, name, reason = "nowhere", None, str(found)
    return Explanation(
        model=spec.id,
        how=how,
        node=name,
        reason=reason,
        queued=waiting,
        load=load,
        nodes=verdicts,
    )


def _verdict(spec: ModelSpec, node: Node, loads: Loads) -> Verdict:
    there = node.models.get(spec.id)
    verdict = Verdict(
        node=node.name,
        verdict="no",
        status=there.status if there else None,
        in_flight=node.in_flight[spec.id],
        queued=node.queued(spec.id),
        pinned=node.name in spec.pinned_on,
        devices=there.devices if there else (),
    )
    return _judged(verdict, spec, node, loads)


def _judged(verdict: Verdict, spec: ModelSpec, node: Node, loads: Loads) -> Verdict:
    if node.serves(spec.id):
        if node.has_seat(spec.id):
            return attrs.evolve(verdict, verdict="serves")
        return attrs.evolve(verdict, verdict="full", reason="all its seats are taken")
    there = node.models.get(spec.id)
    if there is not None and node.in_service and state_of(spec.id, [node]) == "coming":
        return attrs.evolve(verdict, reason=there.servable.reason or f"it is {there.status} there")
    found = loads.would_place(spec, [node])
    if not isinstance(found, Placement):
        return attrs.evolve(verdict, reason=found.reasons.get(node.name))
    return attrs.evolve(
        verdict,
        verdict="evicts" if found.evict else "fits",
        devices=found.devices,
        evict=found.evict,
    )
