"""Take the nodes of a model in turn."""

from __future__ import annotations

from collections.abc import Sequence

from cortex import hookimpl
from cortex.api import Register, RoutingStrategy
from cortex.chat.request import RequestHead
from cortex.fleet.model import Candidate


class RoundRobin:
    """The next node by name after the one the model's last request went to."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def choose(self, head: RequestHead, candidates: Sequence[Candidate]) -> Candidate:
        ordered = sorted(candidates, key=lambda c: c.node)
        last = self._last.get(head.model, "")
        chosen = next((c for c in ordered if c.node > last), ordered[0])
        self._last[head.model] = chosen.node
        return chosen


@hookimpl
def cortex_register_routing_strategies(register: Register[RoutingStrategy]) -> None:
    register("round-robin", RoundRobin, summary="the nodes of a model in turn")
