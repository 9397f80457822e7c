"""Prefer the node with the fewest requests under way."""

from __future__ import annotations

from collections.abc import Sequence

from cortex import hookimpl
from cortex.api import Register, RoutingStrategy
from cortex.chat.request import RequestHead
from cortex.fleet.model import Candidate


class LeastLoaded:
    """Fewest in flight and queued; the name settles a tie."""

    def choose(self, head: RequestHead, candidates: Sequence[Candidate]) -> Candidate:  # noqa: ARG002
        return min(candidates, key=lambda c: (c.in_flight + c.queued, c.node))


@hookimpl
def cortex_register_routing_strategies(register: Register[RoutingStrategy]) -> None:
    register("least-loaded", LeastLoaded, summary="fewest requests under way")
