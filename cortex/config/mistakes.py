"""
Mistakes in a configuration, all at once and with their lines; why a file is of no use.

A check raises a `ConfigError`; what is checked independently is checked all the same.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from cortex.errors import ConfigError

_PART = re.compile(r"\[(\d+)\]|\['?(.*?)'?\]|([^.\[]+)")


class Mistakes(AbstractContextManager["Mistakes"]):
    """Collects: ``with mistakes:`` around each check."""

    def __init__(self) -> None:
        self.found: list[ConfigError] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        if not isinstance(error, ConfigError):
            return False
        self.found.extend(error.each)
        return True

    def raise_any(self) -> None:
        """
        Let go on whose configuration has no mistake.

        Raises:
            ConfigError: With every one.
        """
        if self.found:
            raise ConfigError.of(self.found)


def cause(error: Exception, path: Path) -> str:
    """Say why *path* cannot be used: without a number, with a path only if it is another."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    other = error.filename if error.filename not in (None, str(path)) else ""
    return f"{error.strerror}: {other}" if other else error.strerror


def line_of(text: str, key: str) -> int | None:
    """
    Return the line, from 1, a key path begins in, or the nearest table around it that is there.

    Found by reading ever less of *text*, so that what is a comment, a string or a table the reader
    of TOML says, and nobody guesses.

    Args:
        text: The file; None is the answer if it is no TOML.
        key: ``neurons[0].endpoint``.
    """
    lines = text.splitlines(keepends=True)
    path = [int(number) if number else name or plain for number, name, plain in _PART.findall(key)]
    table = _readable(lines, len(lines))[1]
    while path and not _has(table, path):
        path.pop()
    if not path:
        return None
    whole = range(len(lines) + 1)
    ends = bisect_left(whole, True, key=lambda most: _has(_readable(lines, most)[1], path))
    return _readable(lines, ends - 1)[0] + 1


def _readable(lines: Sequence[str], most: int) -> tuple[int, dict[str, Any]]:
    """Return how many lines from the first on, of *most*, are whole, and what they say."""
    for count in range(most, 0, -1):
        try:
            return count, tomllib.loads("".join(lines[:count]))
        except tomllib.TOMLDecodeError:
            continue
    return 0, {}


def _has(table: Any, path: Sequence[str | int]) -> bool:
    for part in path:
        try:
            table = table[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True
