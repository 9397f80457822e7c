"""
Text that comes in pieces, for readers that are written as if it were all there.

A reader is a generator: it yields where it needs more than has come and goes on when it has, so a
piece may end anywhere, in the middle of a marker too.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]


class Pieces:
    """
    What has come and is not read yet.

    Attributes:
        text: From `kept` on, or from `at` on.
        at: Where the reader is in `text`.
        kept: Where the reader may want to go back to.
        ended: No more will come.
    """

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.kept: int | None = None
        self.ended = False

    def add(self, text: str) -> None:
        """Take in a piece, and forget what was read."""
        start = self.at if self.kept is None else self.kept
        self.text = self.text[start:] + text
        self.at -= start
        if self.kept is not None:
            self.kept = 0

    def more(self) -> Reading[bool]:
        """Wait for a piece; False if none will come."""
        if not self.ended:
            yield
            return True
        return False

    def peek(self) -> Reading[str]:
        """Return the next character; nothing at the end."""
        while self.at == len(self.text) and (yield from self.more()):
            pass
        return self.text[self.at : self.at + 1]

    def blank(self) -> Reading[str]:
        """Pass white space, and return the character behind it; nothing at the end."""
        while (char := (yield from self.peek())).isspace():
            self.at += 1
        return char

    def mark(self, marks: Sequence[str]) -> Reading[str | None]:
        """Return which of *marks* is next, without passing it."""
        while True:
            rest = self.text[self.at :]
            may_come = any(len(mark) > len(rest) and mark.startswith(rest) for mark in marks)
            if not (may_come and (yield from self.more())):
                return max((mark for mark in marks if rest.startswith(mark)), key=len, default=None)

    def until(self, marks: Sequence[str], out: Callable[[str], None]) -> Reading[str | None]:
        """
        Give *out* the text before the first of *marks*, as soon as it is certain.

        Returns:
            The mark, which is next and not passed; None at the end.
        """
        while True:
            text = self.text
            found = [
                (at, -len(mark), mark) for mark in marks if (at := text.find(mark, self.at)) >= 0
            ]
            if found:
                at, _, mark = min(found)
            else:
                rest = text[self.at :]
                at = len(text) - max((overlap(rest, mark) for mark in marks), default=0)
            certain, self.at = text[self.at : at], at
            if certain:
                out(certain)
            if found:
                return mark
            if not (yield from self.more()):
                if rest := self.text[self.at :]:
                    self.at = len(self.text)
                    out(rest)
                return None


def overlap(text: str, mark: str) -> int:
    """Return the length of the longest end of *text* that begins *mark* and is not all of it."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
