"""A table that keeps its cursor and draws only the rows that changed; one column takes the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

import attrs
from rich.segment import Segment
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.events import Click
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

Cells = tuple[Text, ...]
MIN_COLUMNS = 12
GAP = " "


@attrs.frozen
class Column:
    """A column; *columns* wide, or what the others leave where that is 0."""

    label: str
    columns: int
    right: bool = False


class Table(ScrollView, can_focus=True):
    """Labels above rows; these have keys, and the cursor stays on its key wherever that goes."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--labels", "table--cursor"}
    DEFAULT_CSS = """
    Table { height: 1fr; scrollbar-size-vertical: 1; scrollbar-gutter: stable; }
    Table > .table--labels { background: $panel; text-style: bold; }
    Table > .table--cursor { background: $block-cursor-blurred-background;
                             color: $block-cursor-blurred-foreground; }
    Table:focus > .table--cursor { background: $block-cursor-background;
                                   color: $block-cursor-foreground; text-style: bold; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "up", show=False),
        Binding("down", "move(1)", "down", show=False),
        Binding("pageup", "page(-1)", "a page up", show=False),
        Binding("pagedown", "page(1)", "a page down", show=False),
        Binding("home", "first", "first", show=False),
        Binding("end", "last", "last", show=False),
        Binding("enter", "choose", "choose", show=False),
    ]

    class Resized(Message):
        """It has another width: lay it out, and show rows that fit."""

    class Chosen(Message):
        """Enter was pressed on a row, or the one under the cursor clicked."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    def __init__(self, *, name: str) -> None:
        super().__init__(name=name, id=name)
        self._shape: tuple[Column, ...] = ()
        self._rows: list[tuple[str, Cells]] = []
        self._cursor = 0
        self.flexible = MIN_COLUMNS

    @property
    def selected(self) -> str | None:
        """The key under the cursor."""
        return self._rows[self._cursor][0] if self._rows else None

    def lay_out(self, shape: tuple[Column, ...]) -> None:
        """Set the columns, for the width there is now."""
        fixed = sum(column.columns + 2 * len(GAP) for column in shape)
        flexible = max(self.scrollable_content_region.width - fixed, MIN_COLUMNS)
        if (shape, flexible) != (self._shape, self.flexible):
            self._shape, self.flexible = shape, flexible
            self._rows = []  # they were made for the other shape
            self.refresh()

    def show(self, rows: Iterable[tuple[str, Cells]]) -> None:
        """Show *rows*, in this order."""
        selected, before, self._rows = self.selected, self._rows, list(rows)
        if [key for key, _ in before] == [key for key, _ in self._rows]:
            for row, (was, now) in enumerate(zip(before, self._rows, strict=True)):
                if was != now:
                    self._redraw(row)
            return
        keys = [key for key, _ in self._rows]
        if selected in keys:
            self._cursor = keys.index(selected)
        self._cursor = max(min(self._cursor, len(keys) - 1), 0)
        self.virtual_size = Size(0, len(keys) + 1)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Draw the labels or, below, a row."""
        if y == 0:
            labels = (Text(column.label) for column in self._shape)
            return self._line(labels, "table--labels")
        row = self.scroll_offset.y + y - 1
        if row >= len(self._rows):
            return Strip.blank(self.size.width, self.rich_style)
        return self._line(self._rows[row][1], "table--cursor" if row == self._cursor else "")

    def _line(self, cells: Iterable[Text], component: str) -> Strip:
        drawn = Strip(self._segments(cells)).adjust_cell_length(self.size.width)
        style = self.get_component_rich_style(component) if component else self.rich_style
        return drawn.apply_style(style)

    def _segments(self, cells: Iterable[Text]) -> Iterator[Segment]:
        for column, text in zip(self._shape, cells, strict=True):
            columns = column.columns or self.flexible
            cell = text.copy()
            cell.truncate(columns, overflow="ellipsis")
            cell.align("right" if column.right else "left", columns)
            yield Segment(GAP)
            yield from cell.render(self.app.console)
            yield Segment(GAP)

    def _redraw(self, row: int) -> None:
        y = row + 1 - self.scroll_offset.y
        if 0 < y < self.size.height:
            self.refresh(Region(0, y, self.size.width, 1))

    def _go(self, row: int) -> None:
        row = max(min(row, len(self._rows) - 1), 0)
        self._redraw(self._cursor)
        self._redraw(row)
        self._cursor = row
        shown = self.size.height - 1
        top = min(max(self.scroll_offset.y, row - shown + 1), row)
        self.scroll_to(y=top, animate=False)

    def action_move(self, rows: int) -> None:
        self._go(self._cursor + rows)

    def action_page(self, pages: int) -> None:
        self._go(self._cursor + pages * (self.size.height - 1))

    def action_first(self) -> None:
        self._go(0)

    def action_last(self) -> None:
        self._go(len(self._rows) - 1)

    def action_choose(self) -> None:
        if (key := self.selected) is not None:
            self.post_message(self.Chosen(key))

    def on_resize(self) -> None:
        self.post_message(self.Resized())

    def on_click(self, event: Click) -> None:
        row = self.scroll_offset.y + event.y - 1
        if event.y == 0 or row >= len(self._rows):
            return
        if row == self._cursor:
            self.action_choose()
        else:
            self._go(row)
