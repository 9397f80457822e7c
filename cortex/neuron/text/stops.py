"""
Stop strings: found wherever the text is cut, and never part of it.

Of several that overlap, the one that ends first is found.
"""

from __future__ import annotations

from collections.abc import Sequence

from cortex.neuron.text.reader import overlap


class Stops:
    """
    Holds back what may be the start of a stop string until it is not.

    Attributes:
        matched: The string that was found; nothing comes behind it.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.matched: str | None = None
        self._strings = strings
        self._held = ""

    def feed(self, text: str) -> str:
        """Return the text that is certain."""
        text = self._held + text
        found = [
            (at + len(stop), at, stop) for stop in self._strings if (at := text.find(stop)) >= 0
        ]
        if found:
            _, at, self.matched = min(found)
            self._held = ""
            return text[:at]
        keep = max((overlap(text, stop) for stop in self._strings), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """Return what was held back: no stop string comes of it any more."""
        held, self._held = self._held, ""
        return held
