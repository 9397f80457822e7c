"""One model: where it is, and where a request for it would go now, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar
from urllib.parse import quote

from rich.console import Group, RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from cortex.cli.console import gib, state, table
from cortex.cli.explanation import show
from cortex.cli.top.link import Link
from cortex.cli.top.screen import AskingScreen, Banner, KeyLine
from cortex.cli.top.view import View
from cortex.fleet.node import Explanation, Fleet


class ModelScreen(AskingScreen):
    """Asks again and again, so that it shows how an answer changes."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Back", key_display="Esc")]
    DEFAULT_CSS = """
    ModelScreen #explained { padding: 0 1; height: auto; }
    ModelScreen.-stale #explained { opacity: 60%; }
    """

    def __init__(self, view: View, url: str, link: Link, model: str) -> None:
        super().__init__(view, url, link)
        self.model = model
        self._explained: Explanation | None = None

    def compose(self) -> ComposeResult:
        """One page that scrolls."""
        yield Banner()
        with VerticalScroll():
            yield Static(Text("asking the gateway"), id="explained", markup=False)
        yield KeyLine()

    async def look(self) -> None:
        path = f"/api/v1/explain?model={quote(self.model, safe='')}"
        self._explained = await self.link.get(Explanation, path)

    def paint(self) -> None:
        super().paint()
        parts: list[RenderableType] = [Text(self.model, "bold"), Text()]
        if self.problem:
            parts += [Text(self.problem, "red"), Text()]
        if self._explained is not None:
            parts += ["A request that came now:", show(self._explained), Text()]
        if self.view.fleet is not None:
            parts += facts(self.model, self.view.fleet)
        self.query_one("#explained", Static).update(Group(*parts))

    def action_leave(self) -> None:
        """Go back to the fleet."""
        self.dismiss()


def facts(model: str, fleet: Fleet) -> Iterator[RenderableType]:
    """Yield what is known of a model: its names, its pins, and how it is on each node."""
    if names := [alias for alias, id_ in fleet.aliases.items() if id_ == model]:
        yield Text(f"also called {', '.join(names)}")
    if pinned := fleet.pins.get(model):
        yield Text(f"pinned on {', '.join(pinned)}")
    figures = ("GiB", "CONTEXT", "RUN", "WAIT", "KV", "HIT")
    rows = table(
        "NODE",
        "STATE",
        *figures,
        "HOW IT RUNS",
        right=frozenset(figures),
        wrap=frozenset({"HOW IT RUNS"}),
    )
    for node in fleet.nodes:
        now = next((h for h in node.health.models if h.id == model), None) if node.health else None
        for each in node.models:
            if each.id != model:
                continue
            pct = (None, None) if now is None else (now.kv_used_pct, now.prefix_hit_pct)
            rows.add_row(
                Text(node.name),
                state(each.status if node.healthy else "unreachable"),
                gib(each.vram_used_mb) if each.vram_used_mb else "",
                str(each.limit.context or ""),
                "" if now is None else str(now.in_flight),
                "" if now is None else str(now.queue_depth),
                *("" if share is None else f"{share:.0f}%" for share in pct),
                Text(each.error or each.servable.reason or (now and now.body) or ""),
            )
    if rows.row_count:
        yield rows
