"""Tool calls whose arguments are written as JSON."""

from __future__ import annotations

import re

import attrs

from cortex.neuron.text import json_text
from cortex.neuron.text.forms import LONGEST_HEAD, Call, Unparsable
from cortex.neuron.text.reader import Pieces, Reading


@attrs.frozen(kw_only=True)
class JsonCall:
    """
    ``{"name": ..., "arguments": {...}}``, in whatever spelling of its keys.

    Attributes:
        strict: No other keys: what may be an answer in JSON must not wait for its end.
    """

    begins: str = "{"
    strict: bool = False

    def marks(self) -> tuple[str, ...]:
        return ()

    def read(self, pieces: Pieces, call: Call) -> Reading[None]:
        if not (yield from self._read(pieces, call)):
            raise Unparsable

    def _read(self, pieces: Pieces, call: Call) -> Reading[bool]:  # noqa: C901 - a table of keys
        """Read an object; return whether it named a tool."""
        pieces.at += 1  # the brace
        named, held = False, ""
        while True:
            char = yield from pieces.blank()
            if char == "}":
                pieces.at += 1
                break
            if char == ",":
                pieces.at += 1
                continue
            key = yield from json_text.string(pieces)
            if key is None or (yield from pieces.blank()) != ":":
                break
            pieces.at += 1
            following = yield from pieces.blank()
            if key == "function" and following == "{" and not named:
                named = yield from self._read(pieces, call)
            elif key in ("name", "tool_name", "function") and not named:
                name = yield from json_text.string(pieces)
                if not name:
                    raise Unparsable
                call.start(name)
                named = True
                call.arguments(held)
            elif key in ("arguments", "parameters", "args"):
                if named and following == "{":
                    yield from json_text.value(pieces, call.arguments)
                    continue
                held = plain((yield from json_text.whole(pieces)))
                if named:
                    call.arguments(held)
            elif self.strict and key not in ("id", "type"):
                break
            else:
                yield from json_text.whole(pieces)
        return named


def plain(arguments: str) -> str:
    """Return arguments as an object: some models write it into a string, or null for none."""
    said = json_text.unquoted(arguments)
    return "" if arguments == "null" else arguments if said is None else said


@attrs.frozen(kw_only=True)
class HeadedCall:
    """
    A head with the name, then the arguments as JSON.

    Attributes:
        head: Matches the head; its group ``name`` is the tool.
        ends: What may follow a head without arguments.
        inside: Marks within a head.
    """

    begins: str
    head: re.Pattern[str]
    ends: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()

    def marks(self) -> tuple[str, ...]:
        return (self.begins, *self.ends, *self.inside)

    def read(self, pieces: Pieces, call: Call) -> Reading[None]:
        head = ""
        while True:
            head = pieces.text[pieces.at :]
            found = [at for end in ("{", *self.ends) if (at := head.find(end)) >= 0]
            if found:
                head = head[: min(found)]
                break
            if len(head) > LONGEST_HEAD or not (yield from pieces.more()):
                raise Unparsable
        if not (match := self.head.fullmatch(head)):
            raise Unparsable
        call.start(match["name"])
        pieces.at += len(head)
        if (yield from pieces.peek()) == "{":
            yield from json_text.value(pieces, call.arguments)


@attrs.frozen(kw_only=True)
class KeyedCall:
    """``{"NAME": {...}}``."""

    begins: str = "{"

    def marks(self) -> tuple[str, ...]:
        return ()

    def read(self, pieces: Pieces, call: Call) -> Reading[None]:
        pieces.at += len(self.begins)
        yield from pieces.blank()
        name = yield from json_text.string(pieces)
        if not name or (yield from pieces.blank()) != ":":
            raise Unparsable
        pieces.at += 1
        call.start(name)
        if (yield from pieces.blank()) == "{":
            yield from json_text.value(pieces, call.arguments)
