"""What happened, in the order it did, as lines of a log that can be searched."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

import attrs

KEPT = 1000


@attrs.frozen(kw_only=True)
class Entry:
    """
    One line.

    Attributes:
        number: Counts from 1; later ones are higher.
        at: Unix seconds.
        kind: ``node``, ``model``, ``load``, ``request``, ``reload``, ``gateway`` or ``done``.
    """

    number: int
    at: float
    kind: str
    text: str
    bad: bool = False

    def __str__(self) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(self.at))
        return f"{clock}  {self.kind:<7}  {'! ' if self.bad else ''}{self.text}"

    def has(self, wanted: str) -> bool:
        """Whether each word of *wanted* is in it, in whatever case."""
        line = f"{self.kind} {self.text}".casefold()
        return all(word in line for word in wanted.casefold().split())


class Journal:
    """Keeps the last `KEPT` entries."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=KEPT)
        self.last = 0

    def note(self, at: float, kind: str, text: str, *, bad: bool = False) -> None:
        """Append one."""
        self.last += 1
        self._entries.append(Entry(number=self.last, at=at, kind=kind, text=text, bad=bad))

    def since(self, number: int, wanted: str = "") -> Iterator[Entry]:
        """Yield, in order, those after *number* that have what is *wanted*."""
        return (each for each in self._entries if each.number > number and each.has(wanted))
