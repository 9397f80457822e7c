"""How commands write to a terminal: consoles, tables, quantities, states."""

from __future__ import annotations

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cortex.config.load import environment

BAR_COLUMNS = 16
PIPE_COLUMNS = 200  # nobody wraps what goes into a file
KIB = 1024
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400
STYLES = {
    "ok": "green",
    "loaded": "green",
    "ready": "green",
    "loading": "yellow",
    "unloading": "yellow",
    "recovering": "yellow",
    "draining": "yellow",
    "degraded": "yellow",
    "asleep": "dim",
    "stale": "dim",
    "on demand": "dim",
    "poisoned": "red",
    "failed": "red",
    "unservable": "red",
    "unreachable": "red",
    "nowhere": "red",
}


def console(*, stderr: bool = False) -> Console:
    """Return a console for stdout or stderr; wide if that is a file or a pipe."""
    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal and not environment().get("COLUMNS"):
        made.width = PIPE_COLUMNS
    return made


def table(*headers: str, right: frozenset[str] = frozenset(), wrap: frozenset[str]) -> Table:
    """
    Return a table without lines.

    Args:
        headers: The columns.
        right: Those aligned to the right.
        wrap: Those that give way where the terminal is narrow; the others keep to one line.
    """
    made = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for header in headers:
        made.add_column(
            header,
            justify="right" if header in right else "left",
            no_wrap=header not in wrap,
            overflow="fold",
        )
    return made


def state(word: str, after: str = "") -> Text:
    """Return a state in its colour, and what to say *after* it."""
    return Text(word, STYLES.get(word, "")) + Text(after)


def bar(share: float) -> ProgressBar:
    """Return a bar; *share* is 0..1."""
    return ProgressBar(1, share, BAR_COLUMNS, complete_style="cyan", finished_style="cyan")


def gib(mib: float) -> str:
    """Format MiB as GiB."""
    return f"{mib / KIB:.1f}"


def size(n_bytes: float) -> str:
    """Format bytes in the largest binary unit that leaves at least 1."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < KIB:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= KIB
    return f"{n_bytes:.1f} TiB"


def duration(seconds: float) -> str:
    """Format a duration with its two largest units."""
    s = int(seconds)
    if s < MINUTE_S:
        return f"{s}s"
    if s < HOUR_S:
        return f"{s // MINUTE_S}m {s % MINUTE_S}s"
    if s < DAY_S:
        return f"{s // HOUR_S}h {s % HOUR_S // MINUTE_S}m"
    return f"{s // DAY_S}d {s % DAY_S // HOUR_S}h"
