"""Where a request for a model would go, and why, as a sentence and a table."""

from __future__ import annotations

from rich.console import Group, RenderableType

from cortex.cli.console import state, table
from cortex.fleet.node import Explanation, Verdict

WRAP = frozenset({"WHY"})
SAID = {
    "loaded": "goes to {node}",
    "queued": "waits for a seat",
    "joined-load": "waits for its load on {node}",
    "cold-load": "would be loaded on {node}",
    "nowhere": "can go nowhere now",
}


def show(found: Explanation) -> RenderableType:
    """Return what `cortex models explain` prints."""
    said = SAID.get(found.how, found.how).format(node=found.node or "a node")
    waiting = f", {found.queued} wait already" if found.queued else ""
    rows = table("NODE", "VERDICT", "REQUESTS", "WHY", right=frozenset({"REQUESTS"}), wrap=WRAP)
    for verdict in found.nodes:
        rows.add_row(verdict.node, state(verdict.verdict), str(verdict.in_flight), why(verdict))
    return Group(f"{found.model} {said}{waiting}", rows)


def why(verdict: Verdict) -> str:
    """Return what speaks for or against a node."""
    parts = [verdict.reason or ""]
    if verdict.evict:
        parts.append(f"after {', '.join(verdict.evict)} went")
    if verdict.pinned:
        parts.append("pinned there")
    return ", ".join(filter(None, parts))
