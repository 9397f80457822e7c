"""
The forms models write a tool call in, as data, and a reader for each.

A reader is asked where a call may begin.  It raises `Unparsable` where none does; from the moment
it has told the name, what follows is the call's whatever it looks like.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

import attrs

from cortex.neuron.text import json_text
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


@attrs.frozen(kw_only=True)
class JsonCall:
    """``{"name": ..., "arguments": {...}}``, in whatever spelling of its keys."""

    begins: str = "{"

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
class TaggedCall:
    """
    The name in a tag, and a pair of tags for each argument; the arguments become JSON.

    Attributes:
        name_ends: What ends the name; only the first is passed.
        key: Begins an argument, `key_ends` its name, `value_ends` its value.
        ends: End the call.
        kind: In the text of a key, tells ``true`` or ``false``: whether the value is a string.
    """

    begins: str
    name_ends: tuple[str, ...]
    key: str
    key_ends: str
    value_ends: str
    ends: tuple[str, ...]

    def marks(self) -> tuple[str, ...]:
        tags = (self.begins, *self.name_ends, self.key, self.key_ends, self.value_ends, *self.ends)
        return tuple(tag for tag in tags if tag.strip())

    def read(self, pieces: Pieces, call: Call) -> Reading[None]:
        pieces.at += len(self.begins)
        name, end = yield from self._word(pieces, self.name_ends)
        if end is None or not re.fullmatch(r"[\w.:/-]+", name):
            raise Unparsable
        call.start(name)
        if end == self.name_ends[0]:
            pieces.at += len(end)
        if (yield from pieces.blank()) == "{":  # some write all of them as JSON
            yield from json_text.value(pieces, call.arguments)
            yield from pieces.blank()
            found = yield from pieces.mark(self.ends)
            pieces.at += len(found or "")
            return
        opening = "{"
        while True:
            yield from pieces.blank()
            found = yield from pieces.mark((self.key, *self.ends))
            if found != self.key:
                break
            pieces.at += len(self.key)
            key, end = yield from self._word(pieces, (self.key_ends,))
            if end is None:
                return
            pieces.at += len(end)
            call.arguments(opening)
            opening = ", "
            yield from self._argument(pieces, call, key)
        if found is not None:
            pieces.at += len(found)
        if opening != "{" and (found is not None or call.complete):
            call.arguments("}")

    def _word(self, pieces: Pieces, ends: tuple[str, ...]) -> Reading[tuple[str, str | None]]:
        """Pass a word; return it and which of *ends* is next, or None."""
        while True:
            rest = pieces.text[pieces.at :]
            found = [(at, end) for end in ends if (at := rest.find(end)) >= 0]
            if found:
                at, end = min(found)
                pieces.at += at
                return rest[:at].strip(), end
            if len(rest) > LONGEST_HEAD or not (yield from pieces.more()):
                return rest, None

    def _argument(self, pieces: Pieces, call: Call, key: str) -> Reading[None]:
        """Pass a value and what ends it; a string goes out as it comes."""
        said = re.match(r'([^"<]*)(?:.*string="(true|false)")?', key, re.DOTALL)
        name, declared = said.groups() if said else (key, None)
        call.arguments(f"{json.dumps(name.strip(), ensure_ascii=False)}: ")
        schema = call.schema().get(name.strip())
        parts: list[str] = []
        if declared == "true" or (declared is None and is_string(schema)):
            call.arguments('"')
            last = ""  # a line break before the closing tag is the tag's

            def out(text: str) -> None:
                nonlocal last
                text = last + (text if parts else text.removeprefix("\n"))
                parts.append("")
                last = "\n" if text.endswith("\n") else ""
                call.arguments(json_text.escaped(text.removesuffix("\n")))

            found = yield from pieces.until((self.value_ends,), out)
            if found is None:
                call.arguments(json_text.escaped(last))
            if found is not None or call.complete:
                call.arguments('"')
        else:
            found = yield from pieces.until((self.value_ends,), parts.append)
            if found is not None or call.complete:
                call.arguments(as_json("".join(parts).strip()))
        pieces.at += len(found or "")


def is_string(schema: Any) -> bool:
    """Tell whether a schema takes strings alone."""
    if not isinstance(schema, Mapping):
        return False
    return schema.get("type") in ("string", ["string"]) or (
        "type" not in schema and all(isinstance(one, str) for one in schema.get("enum") or [None])
    )


def as_json(text: str) -> str:
    """Return a value that was written without quotes as JSON; what is none is a string."""
    literals = {"True": "true", "False": "false", "None": "null"}
    text = literals.get(text, text)
    try:
        json.loads(text, parse_constant=lambda _: 1 / 0)
    except (ValueError, ZeroDivisionError):
        return json.dumps(text, ensure_ascii=False)
    return text


@attrs.frozen(kw_only=True)
class BareKeyCall:
    """
    ``call:name{key:value}``: keys bare, strings in quotes of their own; becomes JSON.

    Attributes:
        quote: Opens and closes a string.
    """

    begins: str
    quote: str

    def marks(self) -> tuple[str, ...]:
        return (self.begins, self.quote)

    def read(self, pieces: Pieces, call: Call) -> Reading[None]:
        pieces.at += len(self.begins)
        name = yield from self._word(pieces)
        if (yield from pieces.peek()) != "{" or not name:
            raise Unparsable
        call.start(name)
        inside: list[str] = []
        while char := (yield from pieces.blank()):
            if (yield from pieces.mark((self.quote,))):
                yield from self._string(pieces, call)
            elif char == '"':
                yield from json_text.value(pieces, call.arguments)
            elif char in "{}[],:":
                pieces.at += 1
                call.arguments(char)
                if char in "{[":
                    inside.append(char)
                elif char in "}]" and inside:
                    inside.pop()
                if not inside:
                    return
            elif word := (yield from self._word(pieces)):
                is_key = inside[-1] == "{" and (yield from pieces.blank()) == ":"
                call.arguments(json.dumps(word, ensure_ascii=False) if is_key else as_json(word))
            else:
                return

    def _string(self, pieces: Pieces, call: Call) -> Reading[None]:
        pieces.at += len(self.quote)
        call.arguments('"')
        found = yield from pieces.until(
            (self.quote,), lambda text: call.arguments(json_text.escaped(text))
        )
        pieces.at += len(found or "")
        call.arguments('"' if found or call.complete else "")

    def _word(self, pieces: Pieces) -> Reading[str]:
        """Pass what stands before punctuation."""
        word = ""
        while (char := (yield from pieces.peek())) and char not in '{}[],:"<' and char != "\n":
            word += char
            pieces.at += 1
        return word.strip()
