"""A table that keeps its cursor and redraws only what changed; one column takes what is left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import attrs
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widgets import DataTable
from textual.widgets.data_table import ColumnKey

Cells = tuple[Text, ...]
MIN_COLUMNS = 12


@attrs.frozen
class Column:
    """A column; *columns* wide, or what the others leave where that is 0."""

    label: str
    columns: int
    right: bool = False


class Table(DataTable[Text]):
    """Rows have keys; the cursor stays on its key, wherever that goes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("home", "scroll_top", "first", show=False),
        Binding("end", "scroll_bottom", "last", show=False),
    ]
    DEFAULT_CSS = """
    Table { height: 1fr; scrollbar-size-vertical: 1; }
    """

    def __init__(self, *, name: str) -> None:
        super().__init__(cursor_type="row", zebra_stripes=False, name=name, id=name)
        self._shape: tuple[Column, ...] = ()
        self._shown: dict[str, Cells] = {}
        self._at: tuple[str | None, int] = (None, 0)  # the cursor's key, and the first line
        self.flexible = MIN_COLUMNS

    @property
    def selected(self) -> str | None:
        """The key under the cursor."""
        if not self._shown or not self.is_valid_row_index(self.cursor_row):
            return None
        return self.ordered_rows[self.cursor_row].key.value

    def lay_out(self, shape: tuple[Column, ...]) -> None:
        """Set the columns, for the width there is now; new ones have no rows until `show`."""
        fixed = sum(column.columns for column in shape)
        room = self.size.width - self.scrollbar_size_vertical - 2 * self.cell_padding * len(shape)
        flexible = max(room - fixed, MIN_COLUMNS)
        if (shape, flexible) == (self._shape, self.flexible):
            return
        self._shape, self.flexible = shape, flexible
        self._empty(columns=True)
        for column in shape:
            label = Text(column.label, justify="right" if column.right else "left")
            self.add_column(label, width=column.columns or flexible, key=column.label)

    def show(self, rows: Iterable[tuple[str, Cells]]) -> None:
        """Show *rows*, in this order."""
        wanted = dict(rows)
        if list(wanted) != list(self._shown):
            self._empty()
            self._fill(wanted)
            return
        for key, cells in wanted.items():
            before = self._shown[key]
            for column, was, now in zip(self._shape, before, cells, strict=True):
                if was != now:
                    self.update_cell(key, ColumnKey(column.label), _aligned(column, now))
        self._shown = wanted

    def _empty(self, *, columns: bool = False) -> None:
        if self._shown:
            self._at = (self.selected, self.scroll_offset.y)
        self.clear(columns=columns)
        self._shown = {}

    def _fill(self, rows: Mapping[str, Cells]) -> None:
        for name, cells in rows.items():
            aligned = (_aligned(*pair) for pair in zip(self._shape, cells, strict=True))
            self.add_row(*aligned, key=name)
        self._shown = dict(rows)
        key, top = self._at
        if key is not None and key in rows:
            self.move_cursor(row=self.get_row_index(key), scroll=False)
            self.scroll_to(y=top, animate=False)


def _aligned(column: Column, cell: Text) -> Text:
    if column.right:
        cell = cell.copy()
        cell.justify = "right"
    return cell
