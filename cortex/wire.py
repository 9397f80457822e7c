"""JSON and numbers from outside: read strictly, with errors in our words that name the field."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from cortex.errors import InvalidJson, InvalidRequest, MissingParameter

T = TypeVar("T")
MAX_DIGITS = 9  # of some thousands Python makes no number at all
encode = msgspec.json.Encoder().encode


def decode(decoder: Callable[[bytes], T], body: bytes) -> T:
    """
    Decode *body* with a msgspec decoder's `decode`.

    Raises:
        InvalidJson: It is not JSON, or nested too deeply.
        InvalidRequest: A field is missing or of the wrong kind; `param` is its path.
    """
    try:
        return decoder(body)
    except msgspec.ValidationError as error:
        raise explain(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidJson(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidJson("the body is nested too deeply") from None


def explain(said: str) -> InvalidRequest:
    """Turn msgspec's ``Expected `str`, got `int` - at `$.messages[2].content``` into our error."""
    problem, at, path = said.rpartition(" - at `$")
    if not at:
        problem, path = said, ""
    param = path.rstrip("`").lstrip(".")
    if missing := re.search(r"missing required field `(\w+)`", problem):
        name = ".".join(filter(None, [param, missing[1]]))
        return MissingParameter(f"{name} is required", param=name)
    words = problem.replace("`", "")
    place = param or "the body"
    return InvalidRequest(f"{place}: {words[0].lower()}{words[1:]}", param=param or None)


def whole(said: str) -> int | None:
    """Return the whole number that a path or a query says; None is none, or one too long."""
    return int(said) if said.isdecimal() and len(said) <= MAX_DIGITS else None
