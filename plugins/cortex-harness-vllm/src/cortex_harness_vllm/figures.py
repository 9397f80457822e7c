"""The figures of a model: what its server's Prometheus metrics say, and how fast it answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import attrs

from cortex.chat.events import Usage
from cortex.fleet.model import ModelStats

SAMPLE = re.compile(r"^([a-zA-Z_][\w:]*)(?:\{[^\n]*\})? (\S+)", re.MULTILINE)
SHARES = ("kv_used_pct", "prefix_hit_pct")  # said as 0 to 1
COUNTS = ("running", "waiting", "prompt_tokens_total", "cached_tokens_total", "preemptions_total")


def read_figures(text: str, names: Mapping[str, str]) -> dict[str, float]:
    """
    Return the figures there are; of several engines of one server counts are added.

    Args:
        text: Metrics in Prometheus' text format.
        names: Fields of `ModelStats`, by the metric that says them.
    """
    found: dict[str, float] = {}
    for name, value in SAMPLE.findall(text):
        if (field := names.get(name)) is None:
            continue
        try:
            number = float(value)
        except ValueError:
            continue
        before = found.get(field, 0.0)
        found[field] = max(before, 100 * number) if field in SHARES else before + number
    return found


def with_figures(stats: ModelStats, found: Mapping[str, float]) -> ModelStats:
    """Return *stats* with what the server said last."""
    more: dict[str, Any] = {name: int(found[name]) for name in COUNTS if name in found}
    more |= {name: round(found[name], 1) for name in SHARES if name in found}
    asked, cached = found.get("prompt_tokens_total"), found.get("cached_tokens_total")
    if asked and cached is not None:
        more["prefix_hit_pct"] = round(100 * cached / asked, 1)
    return attrs.evolve(stats, **more)


@attrs.define(kw_only=True)
class Rates:
    """How fast a server is, smoothed over its last answers, in tokens per second."""

    prefill: float = 0.0
    decode: float = 0.0

    def take(self, usage: Usage, tokens: int) -> None:
        """Take in an answer, of which *tokens* were generated here."""
        computed = usage.prompt_tokens - usage.cached_tokens
        if usage.prefill_ms > 0 and computed > 0:
            self.prefill = smooth(self.prefill, 1e3 * computed / usage.prefill_ms)
        if usage.decode_ms > 0 and tokens > 1:
            self.decode = smooth(self.decode, 1e3 * (tokens - 1) / usage.decode_ms)


def smooth(old: float, new: float) -> float:
    """Return the running mean of a rate."""
    return new if not old else 0.8 * old + 0.2 * new
