"""Tool calls whose arguments are written in tags."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import attrs

from cortex.neuron.text import json_text
from cortex.neuron.text.forms import LONGEST_HEAD, Call, Unparsable
from cortex.neuron.text.reader import Pieces, Reading


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
    if "type" in schema:
        return schema["type"] in ("string", ["string"])
    several = schema.get("enum")
    return isinstance(several, list) and {*map(type, several)} == {str}


def as_json(text: str) -> str:
    """Return a value that was written without quotes as JSON; what is none is a string."""
    literals = {"True": "true", "False": "false", "None": "null"}
    text = literals.get(text, text)
    try:
        json.loads(text, parse_constant=lambda _: 1 / 0)
    except (ValueError, ZeroDivisionError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return text
