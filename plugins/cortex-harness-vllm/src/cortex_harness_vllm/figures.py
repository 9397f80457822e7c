"""What a server says of itself in its Prometheus metrics, as the figures of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import attrs

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
