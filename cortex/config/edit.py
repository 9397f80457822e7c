"""
Changes to a configuration file that leave every other line of it as it is.

A change is made to the text, and the result read again before it takes the file's place: a file
that is written so that this cannot be done is left alone, and the error says what to do by hand.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit
import tomlkit.exceptions

from cortex.errors import ConfigError

KEYS_HEADER = re.compile(r"\s*\[\[\s*auth\s*\.\s*keys\s*\]\]")
HEADER = re.compile(r"\s*\[")
ASIDE = re.compile(r"\s*(#.*)?$")  # a comment, or nothing


def key_table(values: Mapping[str, object]) -> str:
    """Return the ``[[auth.keys]]`` table with *values*."""
    return "[[auth.keys]]\n" + tomlkit.dumps(values)


def add_key(path: Path, values: Mapping[str, object]) -> None:
    """
    Add a key, at the end of the file.

    Raises:
        ConfigError: The file cannot be written, or not in this way.
    """
    text = _read(path)
    gap = "" if not text else "\n" if text.endswith("\n") else "\n\n"
    table = key_table(values)
    edited = text + gap + table
    if _keys(edited, path) != [*_keys(text, path), dict(values)]:
        raise ConfigError(f"{path}: auth.keys is no list of tables: add this by hand:\n{table}")
    _replace(path, edited)


def remove_key(path: Path, name: str) -> None:
    """
    Remove the key called *name*, which is there, with what stands in its table.

    Raises:
        ConfigError: The file cannot be written, or not in this way.
    """
    text = _read(path)
    keys = _keys(text, path)
    number = next(n for n, key in enumerate(keys) if key.get("name") == name)
    edited = _without(text, number)
    if _keys(edited, path) != keys[:number] + keys[number + 1 :]:
        raise ConfigError(f"{path}: auth.keys is no list of tables: remove {name!r} by hand")
    _replace(path, edited)


def _without(text: str, number: int) -> str:
    lines = text.splitlines(keepends=True)
    heads = [n for n, line in enumerate(lines) if HEADER.match(line)]
    ours = [n for n in heads if KEYS_HEADER.match(lines[n])]
    if number >= len(ours):
        return text
    begin = ours[number]
    end = next((n for n in heads if n > begin), len(lines))
    if end < len(lines):
        while ASIDE.match(lines[end - 1]):  # what stands above the next table is about that
            end -= 1
        while end < len(lines) and not lines[end].strip():
            end += 1
    return "".join(lines[:begin] + lines[end:])


def _keys(text: str, path: Path) -> list[dict[str, Any]]:
    try:
        auth = tomlkit.parse(text).unwrap().get("auth", {})
        return list(auth.get("keys", []))
    except (tomlkit.exceptions.TOMLKitError, ValueError, AttributeError):
        raise ConfigError(f"{path}: it cannot be changed here: do it by hand") from None


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _replace(path: Path, text: str) -> None:
    """Put *text* in the place of a file at once, with the same owner and mode."""
    path = path.resolve()  # a link stays one
    try:
        was = path.stat()
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(text.encode())
                os.fchmod(number, was.st_mode & 0o7777)
                if (was.st_uid, was.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(number, was.st_uid, was.st_gid)
                file.flush()
                os.fsync(number)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"{path}: it cannot be written: {error.strerror or error}") from None
