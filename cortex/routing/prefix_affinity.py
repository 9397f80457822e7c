"""Send a conversation to the node that has computed its beginning already."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from cortex import hookimpl
from cortex.api import Register, RoutingStrategy
from cortex.chat.request import RequestHead
from cortex.fleet.model import Candidate

MAX_HOMES = 16_384
MARGIN = 4  # requests under way that the home may have more than the least loaded
FULL_PCT = 90.0  # a cache this full is about to lose what it has


class PrefixAffinity:
    """The node a conversation was last on, unless another is much less loaded or it has no room."""

    reads_affinity = True

    def __init__(self) -> None:
        self._homes: OrderedDict[tuple[str, str, str], str] = OrderedDict()

    def __deepcopy__(self, _: dict[int, Any]) -> PrefixAffinity:
        copied = PrefixAffinity()
        copied._homes = self._homes.copy()
        return copied

    def choose(self, head: RequestHead, candidates: Sequence[Candidate]) -> Candidate:
        least = min(candidates, key=lambda c: (is_full(c), load(c), c.node))
        if not head.affinity:
            return least
        key = head.principal, head.model, head.affinity
        name = self._homes.pop(key, None)
        home = next((c for c in candidates if c.node == name), least)
        chosen = least if is_worn(home, least) else home
        self._homes[key] = chosen.node
        if len(self._homes) > MAX_HOMES:
            self._homes.popitem(last=False)
        return chosen


def load(candidate: Candidate) -> int:
    """Return how many requests a node has under way and waiting."""
    return candidate.in_flight + candidate.queued


def is_full(candidate: Candidate) -> bool:
    """Tell whether a node's cache is about to lose what it has."""
    return (candidate.kv_used_pct or 0.0) > FULL_PCT


def is_worn(home: Candidate, least: Candidate) -> bool:
    """Tell whether *least* is to be preferred to the node that has the beginning."""
    return load(home) > load(least) + MARGIN or (is_full(home) and not is_full(least))


@hookimpl
def cortex_register_routing_strategies(register: Register[RoutingStrategy]) -> None:
    register("prefix-affinity", PrefixAffinity, summary="a conversation stays on its node")
