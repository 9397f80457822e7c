"""Tool calls that look like code."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import attrs

from cortex.neuron.text import json_text
from cortex.neuron.text.forms import LONGEST_HEAD, Call, Unparsable
from cortex.neuron.text.reader import Pieces, Reading
from cortex.neuron.text.tag_form import as_json

LITERALS = {"true": True, "false": False, "null": None}


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


@attrs.frozen(kw_only=True)
class PythonCall:
    """``name(key="value")``, which is told as a whole: until its end it may be anything."""

    begins: str = ""

    def marks(self) -> tuple[str, ...]:
        return ()

    def read(self, pieces: Pieces, call: Call) -> Reading[None]:
        while (at := pieces.text.find("(", pieces.at)) < 0:
            if len(pieces.text) - pieces.at > LONGEST_HEAD or not (yield from pieces.more()):
                raise Unparsable
        name = pieces.text[pieces.at : at].strip()
        if not re.fullmatch(r"[\w.-]+", name):
            raise Unparsable
        pieces.at = at + 1
        written = yield from self._inside(pieces)
        positional, named = arguments_of(written)
        call.start(name)
        keys = [key for key in call.schema() if key not in named]
        said = {**dict(zip(keys, positional, strict=False)), **named}
        call.arguments(json.dumps(said, ensure_ascii=False))

    def _inside(self, pieces: Pieces) -> Reading[str]:
        """Pass what stands between parentheses, and the one that closes them."""
        written, depth, quote, skip = "", 0, "", False
        while char := (yield from pieces.peek()):
            pieces.at += 1
            if quote:
                quote = "" if char == quote and not skip else quote
                skip = char == "\\" and not skip
            elif char in "\"'":
                quote = char
            elif char in "([{":
                depth += 1
            elif char in ")]}":
                if not depth:
                    return written
                depth -= 1
            written += char
        raise Unparsable


def arguments_of(written: str) -> tuple[list[Any], dict[str, Any]]:
    """
    Return the arguments of a call in Python: those by place, those by name.

    Raises:
        Unparsable: It is no Python, or has more in it than literals.
    """
    try:
        called = ast.parse(f"f({written})", mode="eval").body
        if not isinstance(called, ast.Call) or None in [one.arg for one in called.keywords]:
            raise Unparsable
        positional = [literal(one) for one in called.args]
        named = {str(one.arg): literal(one.value) for one in called.keywords}
        json.dumps([positional, named])
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise Unparsable from None
    return positional, named


def literal(node: ast.expr) -> Any:
    """Return what a literal says; JSON's own words are some too."""
    if isinstance(node, ast.Name) and node.id in LITERALS:
        return LITERALS[node.id]
    return ast.literal_eval(node)
