"""The requests under way, and those that were lately over; one can be cancelled."""

from __future__ import annotations

from typing import ClassVar

import attrs
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Static

from cortex.cli.console import duration, state
from cortex.cli.top import actions
from cortex.cli.top.drawing import short
from cortex.cli.top.link import Link
from cortex.cli.top.screen import AskingScreen, Banner, KeyLine
from cortex.cli.top.table import Cells, Column, Table
from cortex.cli.top.view import View
from cortex.fleet.node import RequestState

MOST_OVER = 100
AT_ONCE_S = 0.05  # what is over so soon after its first byte was no stream
OVER = frozenset({"ok", "error", "cancelled"})
FIGURES = (
    *(Column("AGE", 7, right=True), Column("TTFT", 7, right=True)),
    *(Column("TOKENS", 6, right=True), Column("TOK/S", 5, right=True)),
)
NARROW = (Column("STATE", 9), Column("WHO", 8), Column("MODEL", 0), Column("NODE", 7), *FIGURES)
WIDE = (
    *(Column("STATE", 10), Column("ID", 38), Column("WHO", 20)),
    *(Column("MODEL", 0), Column("NODE", 20), *FIGURES),
)
WIDE_COLUMNS = 150


@attrs.frozen
class Requests:
    """The body of ``GET /api/v1/requests``."""

    requests: tuple[RequestState, ...]


class RequestsScreen(AskingScreen):
    """Keys are about the request under the cursor."""

    EVERY_S = 1.0

    AUTO_FOCUS = "Table"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("c", "cancel", "Cancel")]
    DEFAULT_CSS = """
    RequestsScreen #said { height: 1; padding: 0 1; }
    RequestsScreen.-stale Table { opacity: 60%; }
    """

    def __init__(self, view: View, url: str, link: Link) -> None:
        super().__init__(view, url, link)
        self._rows: dict[str, RequestState] = {}

    def compose(self) -> ComposeResult:
        """One table, and how many there are."""
        yield Banner()
        yield Static(Text(), id="said", markup=False)
        yield Table(name="requests")
        yield KeyLine()

    async def look(self) -> None:
        found = await self.link.get(Requests, "/api/v1/requests")
        self._rows = keyed(found.requests)

    def paint(self) -> None:
        super().paint()
        table, wide = self.query_one(Table), self.size.width >= WIDE_COLUMNS
        shape = WIDE if wide else NARROW
        table.lay_out(shape)
        table.show((key, cells(row, shape, table.flexible)) for key, row in self._rows.items())
        going = sum(row.state not in OVER for row in self._rows.values())
        said = f"{going} under way, and the last {len(self._rows) - going} that are over"
        self.query_one("#said", Static).update(Text(self.problem or said))

    def on_table_resized(self) -> None:
        self.draw()

    def action_cancel(self) -> None:
        """Ask whether to cancel the request under the cursor."""
        row = self._rows.get(self.query_one(Table).selected or "")
        if row is None or row.state in OVER:
            self.say("that request is over" if row else "there is no request here")
            return
        self.ask(actions.cancel(row))


def keyed(rows: tuple[RequestState, ...]) -> dict[str, RequestState]:
    """Return all under way and the last that are over; two may have the same id."""
    going = [row for row in rows if row.state not in OVER]
    over = [row for row in rows if row.state in OVER][:MOST_OVER]
    found: dict[str, RequestState] = {}
    for row in (*going, *over):
        key, number = row.id, 1
        while key in found:
            number += 1
            key = f"{row.id}\n{number}"
        found[key] = row
    return found


def tok_s(row: RequestState) -> float | None:
    """Return tokens a second since the first byte; None if nothing came yet, or all at once."""
    if row.ttft_s is None or not row.completion_tokens:
        return None
    took_s = (row.age_s if row.duration_s is None else row.duration_s) - row.ttft_s
    return row.completion_tokens / took_s if took_s > AT_ONCE_S else None


def cells(row: RequestState, shape: tuple[Column, ...], flexible: int) -> Cells:
    """Return a row as it is drawn."""
    rate = tok_s(row)
    took_s = row.age_s if row.duration_s is None else row.duration_s
    said = {
        "STATE": state(row.state),
        "ID": Text(row.id),
        "WHO": Text(row.principal),
        "MODEL": Text(short(row.model, flexible)),
        "NODE": Text(row.node),
        "AGE": Text(duration(took_s)),
        "TTFT": Text("" if row.ttft_s is None else f"{row.ttft_s:.2f}s"),
        "TOKENS": Text(str(row.completion_tokens)),
        "TOK/S": Text("" if rate is None else f"{rate:.0f}"),
    }
    return tuple(said[column.label] for column in shape)
