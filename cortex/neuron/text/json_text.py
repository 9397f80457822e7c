"""JSON inside what a model writes: passed on as it comes, read where it has to be understood."""

from __future__ import annotations

import json
from collections.abc import Callable

from cortex.neuron.text.reader import Pieces, Reading

Out = Callable[[str], None]
BARE = frozenset("{}[]:,+-.0123456789 \t\r\nabcdefghijklmnopqrstuvwxyzEINTF")  # outside of strings


def escaped(text: str) -> str:
    """Return *text* as it stands between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def value(pieces: Pieces, out: Out) -> Reading[bool]:  # noqa: C901 - a table of characters
    """
    Give *out* the value that is next, as it comes.

    Control characters, which models leave in strings as they are, are escaped.  What cannot be JSON
    ends it.

    Returns:
        Whether it is whole.
    """
    depth, quoted, skip, begun = 0, False, False, False
    while True:
        passed = []
        done = False
        for char in pieces.text[pieces.at :]:
            if quoted:
                passed.append(escaped(char) if char < " " else char)
                pieces.at += 1
                if char == '"' and not skip:
                    quoted, done = False, depth == 0
                skip = char == "\\" and not skip
            elif char == '"':
                done = begun and depth == 0
                if not done:
                    quoted = begun = True
                    passed.append(char)
                    pieces.at += 1
            elif char not in BARE or (depth == 0 and begun and char in ",:]} \t\r\n"):
                done = True
            else:
                depth += (char in "{[") - (char in "}]")
                begun = True
                passed.append(char)
                pieces.at += 1
                done = depth == 0 and char in "}]"
            if done:
                break
        if passed:
            out("".join(passed))
        if done or not (yield from pieces.more()):
            return depth == 0 and begun and not quoted


def whole(pieces: Pieces) -> Reading[str]:
    """Return the value that is next as text."""
    parts: list[str] = []
    yield from value(pieces, parts.append)
    return "".join(parts)


def string(pieces: Pieces) -> Reading[str | None]:
    """Return the string that is next; None if it is none, or not whole."""
    if (yield from pieces.peek()) != '"':
        return None
    return unquoted((yield from whole(pieces)))


def unquoted(text: str) -> str | None:
    """Return what a JSON string says; None if it is none."""
    try:
        said = json.loads(text)
    except ValueError:
        return None
    return said if isinstance(said, str) else None
