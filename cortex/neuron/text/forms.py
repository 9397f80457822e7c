"""
The forms models write a tool call in: what a reader of one is asked, and whom it tells.

A reader is asked where a call may begin.  It raises `Unparsable` where none does; from the moment
it has told the name, what follows is the call's whatever it looks like.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from cortex.neuron.text.reader import Pieces, Reading

LONGEST_HEAD = 300  # characters


class Unparsable(Exception):
    """What comes is no call."""


class Call(Protocol):
    """Who is told what a reader reads."""

    def start(self, name: str) -> None:
        """
        Begin a call.

        Raises:
            Unparsable: There is no such tool.
        """
        ...

    def arguments(self, text: str) -> None: ...
    @property
    def complete(self) -> bool:
        """Whether the model has said all it wanted to; what it left open may then be closed."""
        ...

    def schema(self) -> Mapping[str, Any]:
        """Return the properties of the tool that was begun."""
        ...


class Form(Protocol):
    """How a call is written."""

    @property
    def begins(self) -> str:
        """What it begins with."""
        ...

    def read(self, pieces: Pieces, call: Call) -> Reading[None]: ...
    def marks(self) -> tuple[str, ...]:
        """Return what must not be lost when tokens become text."""
        ...
