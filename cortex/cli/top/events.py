"""What happened since the dashboard began, with a filter."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.message import Message
from textual.widgets import Input, RichLog

from cortex.cli.top.journal import KEPT, Entry
from cortex.cli.top.screen import Banner, KeyLine, TopScreen


class Lines(RichLog):
    """Says that it has another size, at which lines break elsewhere."""

    class Resized(Message):
        """Write them again."""

    @on(Resize)
    def say(self) -> None:
        """Say so."""
        self.post_message(self.Resized())


class EventsScreen(TopScreen):
    """New lines come below; ``/`` goes to the filter, Enter and Escape leave it."""

    AUTO_FOCUS = "Lines"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("escape", "read", "Back to the lines", show=False, key_display="Esc"),
    ]
    DEFAULT_CSS = """
    EventsScreen Input { margin: 0 1; }
    EventsScreen RichLog { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
    """

    def compose(self) -> ComposeResult:
        """Put the filter above the lines."""
        yield Banner()
        hint = "/ to filter: words that a line has to have, such as: node beast"
        yield Input(placeholder=hint, compact=True)
        yield Lines(max_lines=KEPT, wrap=True, markup=False)
        yield KeyLine()

    def on_mount(self) -> None:
        self._last = 0

    def paint(self) -> None:
        super().paint()
        journal, lines = self.view.journal, self.query_one(Lines)
        if not (columns := lines.scrollable_content_region.width):
            return
        for entry in journal.since(self._last, self.query_one(Input).value):
            lines.write(line(entry), width=columns)
        self._last = journal.last

    def on_input_changed(self) -> None:
        self._begin_again()

    def on_lines_resized(self) -> None:
        self._begin_again()

    def _begin_again(self) -> None:
        self.query_one(Lines).clear()
        self._last = 0
        self.draw()

    def on_input_submitted(self) -> None:
        self.action_read()

    def action_filter(self) -> None:
        """Type what lines have to have."""
        self.query_one(Input).focus()

    def action_read(self) -> None:
        """Leave the filter as it is, and scroll."""
        self.query_one(Lines).focus()


def line(entry: Entry) -> Text:
    """Return an entry as it is drawn."""
    return Text(str(entry), "red" if entry.bad else "")
