"""How fast each model generates, over the last minutes."""

from __future__ import annotations

from collections import deque

import attrs

from cortex.fleet.node import Fleet, Health

KEPT = 60  # samples; a gateway asks its nodes every two seconds


@attrs.define(kw_only=True)
class _Series:
    tokens: int
    uptime_s: float
    samples: deque[float] = attrs.field(factory=lambda: deque(maxlen=KEPT))


class Rates:
    """
    Tokens per second of each model on each node.

    A neuron says what all of a model's requests get now, or at least what it generated so far; the
    difference is then taken over its own clock, so that it does not matter when it was asked.
    """

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], _Series] = {}

    def take(self, fleet: Fleet) -> None:
        """Take in a snapshot; a node that says nothing new adds nothing."""
        there: set[tuple[str, str]] = set()
        for node in fleet.nodes:
            if node.health is not None:
                self._take(node.name, node.health)
                there |= {(row.id, node.name) for row in node.health.models}
        for key in self._series.keys() - there:
            del self._series[key]

    def _take(self, node: str, health: Health) -> None:
        now_s = health.uptime_secs
        for row in health.models:
            series = self._series.get((row.id, node))
            if series is None or now_s < series.uptime_s or row.tokens_total < series.tokens:
                series = _Series(tokens=row.tokens_total, uptime_s=now_s)
                self._series[row.id, node] = series
                if row.tok_s is not None:
                    series.samples.append(row.tok_s)
            elif now_s > series.uptime_s:
                gained = (row.tokens_total - series.tokens) / (now_s - series.uptime_s)
                series.samples.append(gained if row.tok_s is None else row.tok_s)
                series.tokens, series.uptime_s = row.tokens_total, now_s

    def of(self, model: str, node: str) -> tuple[float, ...]:
        """Return the samples of a model on a node, the oldest first; none if all of them are 0."""
        series = self._series.get((model, node))
        return tuple(series.samples) if series and any(series.samples) else ()
