"""The first screen: nodes with their devices, models with their loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import ItemGrid, VerticalScroll
from textual.message import Message

from cortex.cli.console import STYLES
from cortex.cli.top import actions
from cortex.cli.top.card import LEAST_COLUMNS, NodeCard
from cortex.cli.top.drawing import progress, short, sparkline
from cortex.cli.top.replicas import Replica, replicas
from cortex.cli.top.screen import Banner, KeyLine, TopScreen
from cortex.cli.top.table import Cells, Column, Table
from cortex.cli.top.view import View
from cortex.fleet.node import Fleet

MIDDLE_COLUMNS, WIDE_COLUMNS = 110, 160
FIGURES = (Column("RUN", 3, right=True), Column("WAIT", 4, right=True), Column("TOK/S", 5, True))
NARROW = (Column("MODEL", 0), Column("NODE", 7), Column("STATE", 18), *FIGURES, Column("", 7))
MIDDLE = (Column("MODEL", 0), Column("NODE", 12), Column("STATE", 36), *FIGURES, Column("", 12))
WIDE = (Column("MODEL", 0), Column("NODE", 20), Column("STATE", 54), *FIGURES, Column("", 30))


class FleetScreen(TopScreen):
    """Keys of models are about the row under the cursor, keys of nodes about the card or row."""

    DEFAULT_CSS = """
    FleetScreen #nodes { height: auto; max-height: 50%; scrollbar-size-vertical: 1; }
    FleetScreen ItemGrid { height: auto; grid-gutter: 0 1; }
    FleetScreen.-stale NodeCard, FleetScreen.-stale Table { opacity: 60%; }
    """
    AUTO_FOCUS = "Table"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("l", "model('load')", "Load"),
        Binding("u", "model('unload')", "Unload"),
        Binding("p", "model('pin')", "Pin", show=False),
        Binding("P", "model('unpin')", "Unpin", show=False),
        Binding("d", "node('drain')", "Drain"),
        Binding("r", "node('resume')", "Resume", show=False),
    ]

    MORE_KEYS = (
        ("enter", "Say where a request for the model would go, and why"),
        ("tab", "From the models to the nodes, and back"),
    )

    class Chosen(Message):
        """A model is to be looked at."""

        def __init__(self, model: str) -> None:
            super().__init__()
            self.model = model

    def __init__(self, view: View, url: str) -> None:
        super().__init__(view, url)
        self._rows: dict[str, Replica] = {}
        self._drawn: dict[str, tuple[Replica, Cells]] = {}
        self._look: tuple[object, ...] = ()

    def compose(self) -> ComposeResult:
        """Put the nodes above the models."""
        yield Banner()
        with VerticalScroll(id="nodes", can_focus=False):
            yield ItemGrid(min_column_width=LEAST_COLUMNS, stretch_height=False)
        yield Table(name="models")
        yield KeyLine()

    def paint(self) -> None:
        super().paint()
        if (fleet := self.view.fleet) is None:
            return
        self._draw_nodes(fleet)
        self._rows = {row.key: row for row in replicas(fleet, self.view.rates)}
        table, columns = self.query_one(Table), self.size.width
        at_most = MIDDLE if columns < WIDE_COLUMNS else WIDE
        shape = NARROW if columns < MIDDLE_COLUMNS else at_most
        table.lay_out(shape)
        table.show(self._cells(shape, table.flexible))

    def _cells(self, shape: tuple[Column, ...], flexible: int) -> Iterator[tuple[str, Cells]]:
        """Yield the rows as they are drawn; those that are as they were are not made anew."""
        before = self._drawn if self._look == (shape, flexible) else {}
        self._look, self._drawn = (shape, flexible), {}
        for key, row in self._rows.items():
            was = before.get(key)
            now = was if was and was[0] == row else (row, cells(row, shape, flexible))
            self._drawn[key] = now
            yield key, now[1]

    def _draw_nodes(self, fleet: Fleet) -> None:
        cards = list(self.query(NodeCard))
        if [card.node.name for card in cards] != [node.name for node in fleet.nodes]:
            grid = self.query_one(ItemGrid)
            grid.remove_children()
            cards = [NodeCard(node) for node in fleet.nodes]
            grid.mount(*cards)
        for card, node in zip(cards, fleet.nodes, strict=True):
            card.show(node, stale=self.view.stale)

    def on_descendant_focus(self) -> None:
        self.draw()

    def on_table_resized(self) -> None:
        self.draw()

    def on_table_chosen(self, event: Table.Chosen) -> None:
        if row := self._rows.get(event.key):
            self.post_message(self.Chosen(row.model))

    @property
    def row(self) -> Replica | None:
        """The row under the cursor."""
        return self._rows.get(self.query_one(Table).selected or "")

    def action_model(self, verb: str) -> None:
        """Ask about the model under the cursor."""
        fleet, row = self.view.fleet, self.row
        if fleet is None or row is None:
            self.say("there is no model here")
            return
        if verb != "load" and not row.node and not (verb == "unpin" and fleet.pins.get(row.model)):
            self.say(f"{row.model} is on no node: l loads it")
            return
        questions: dict[str, Callable[[Replica, Fleet], actions.Question]] = {
            "load": actions.load,
            "unload": actions.unload,
            "pin": actions.pin,
            "unpin": actions.unpin,
        }
        self.ask(questions[verb](row, fleet))

    def action_node(self, verb: str) -> None:
        """Ask about the node that has the focus, else the one of the row under the cursor."""
        if isinstance(self.focused, NodeCard):
            name = self.focused.node.name
        else:
            name = self.row.node if self.row else ""
        if not name:
            self.say("which node?  Tab goes to the nodes")
            return
        self.ask(actions.drain(name) if verb == "drain" else actions.resume(name))


def cells(row: Replica, shape: tuple[Column, ...], flexible: int) -> Cells:
    """Return a row as it is drawn."""
    room = {column.label: column.columns for column in shape}
    mark = "*" if row.pinned else ""
    return (
        Text(short(row.model, flexible - len(mark)) + mark),
        Text(short(row.node, room["NODE"])),
        _state(row, room["STATE"]),
        Text("" if row.in_flight is None else str(row.in_flight)),
        Text("" if row.waiting is None else str(row.waiting)),
        Text(f"{row.tok_s[-1]:.0f}" if row.tok_s and row.tok_s[-1] >= 1 else ""),
        Text(sparkline(row.tok_s, room[""]), "cyan"),
    )


def _state(row: Replica, columns: int) -> Text:
    if row.load is not None:
        return Text(progress(row.load, columns), STYLES["loading"])
    said = f"{row.state}: {row.trouble}" if row.trouble else row.state
    return Text(said, STYLES.get(row.state, ""))
