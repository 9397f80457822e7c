"""
Routing strategy ``sticky``: stay with a model's last node until another has far less to do.

A pyproject.toml beside this file makes it a plugin::

    [project]
    name = "cortex-sticky"
    version = "1.0"
    [project.entry-points.cortex]
    sticky = "cortex_sticky"

Install it with ``pip install .``, choose it in cortex.toml: ``[routing] strategy = "sticky"``.
"""

from __future__ import annotations

from collections.abc import Sequence

from cortex import hookimpl
from cortex.api import Register, RoutingStrategy
from cortex.chat.request import RequestHead
from cortex.fleet.model import Candidate

PATIENCE = 4  # so many requests more may the last node have


class Sticky:
    """Keeps a model's requests together; a pure choice, but for what it remembers."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def choose(self, head: RequestHead, candidates: Sequence[Candidate]) -> Candidate:
        last = self._last.get(head.model)
        chosen = min(
            candidates,
            key=lambda c: (c.in_flight + c.queued - (PATIENCE if c.node == last else 0), c.node),
        )
        self._last[head.model] = chosen.node
        return chosen


@hookimpl
def cortex_register_routing_strategies(register: Register[RoutingStrategy]) -> None:
    register("sticky", Sticky, summary="the last node, until another has far less to do")
