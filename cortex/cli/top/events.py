"""What happened since the dashboard began, with a filter."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Footer, Input, RichLog

from cortex.cli.top.journal import KEPT, Entry
from cortex.cli.top.screen import Banner, TopScreen


class EventsScreen(TopScreen):
    """New lines come below; ``/`` goes to the filter, Enter and Escape leave it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter"),
        Binding("escape", "read", "Back to the lines", show=False),
    ]
    DEFAULT_CSS = """
    EventsScreen Input { border: none; height: 1; padding: 0 1; }
    EventsScreen RichLog { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
    """

    def compose(self) -> ComposeResult:
        """Put the filter above the lines."""
        yield Banner()
        yield Input(placeholder="/ to filter: words that a line has to have, such as: node beast")
        yield RichLog(max_lines=KEPT, wrap=True, markup=False, min_width=20)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self._last = 0
        self.query_one(RichLog).focus()

    def paint(self) -> None:
        super().paint()
        journal, log = self.view.journal, self.query_one(RichLog)
        for entry in journal.since(self._last, self.query_one(Input).value):
            log.write(line(entry))
        self._last = journal.last

    def on_input_changed(self) -> None:
        self.query_one(RichLog).clear()
        self._last = 0
        self.draw()

    def on_input_submitted(self) -> None:
        self.action_read()

    def action_filter(self) -> None:
        """Type what lines have to have."""
        self.query_one(Input).focus()

    def action_read(self) -> None:
        """Leave the filter as it is, and scroll."""
        self.query_one(RichLog).focus()


def line(entry: Entry) -> Text:
    """Return an entry as it is drawn."""
    return Text(str(entry), "red" if entry.bad else "")
