"""
Two configurations beside each other: what differs, by key path; secrets are never shown.

A table among several is named by its name or id: ``neurons[beast].endpoint``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from cortex.config.schema import Address

SECRETS = ("token", "sha256")
OPAQUE = ("options",)  # of plugins: nobody knows which of them are secret
MASK = "***"


@attrs.frozen
class Change:
    """One key that says something else than before; None is one that is not there."""

    key: str
    was: Any
    now: Any


def changes(old: Any, new: Any, key: str = "") -> Iterator[Change]:
    """Yield what differs between two configurations, or parts of them."""
    name = key.rpartition(".")[2]
    if old == new:
        return
    if attrs.has(type(old)) and type(old) is type(new) and not isinstance(old, Address):
        inside = [field.name for field in attrs.fields(type(old))]
        pairs = {part: (getattr(old, part), getattr(new, part)) for part in inside}
        below = {part: f"{key}.{part}" if key else part for part in inside}
    elif name not in OPAQUE and (tables := _tables(old, new)) is not None:
        before, after = tables
        pairs = {part: (before.get(part), after.get(part)) for part in {**before, **after}}
        below = {part: f"{key}[{part}]" for part in pairs}
    else:
        yield Change(key, shown(old, name), shown(new, name))
        return
    for part, (was, now) in pairs.items():
        yield from changes(was, now, below[part])


def shown(value: Any, name: str = "") -> Any:
    """Return *value*, the one of the key *name*, as JSON has it; what is secret is masked."""
    if value is None or isinstance(value, bool | int | float):
        return None if value is None else MASK if name in SECRETS else value
    if name in SECRETS:
        return MASK
    if isinstance(value, Address | Path | str):
        return str(value)
    if attrs.has(type(value)):
        return {f.name: shown(getattr(value, f.name), f.name) for f in attrs.fields(type(value))}
    if isinstance(value, Mapping):
        masked = "token" if name in OPAQUE else ""
        return {str(k): _options(v) if masked else shown(v) for k, v in value.items()}
    return [shown(item) for item in value]


def _options(table: Any) -> Any:
    return dict.fromkeys(table, MASK) if isinstance(table, Mapping) else MASK


def _tables(old: Any, new: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return two lists of tables by the tables' names, or two mappings; else None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return dict(old), dict(new)
    both = [*old, *new] if isinstance(old, tuple) and isinstance(new, tuple) else []
    if not both or not all(hasattr(row, "name") or hasattr(row, "id") for row in both):
        return None
    named = [{getattr(row, "name", None) or row.id: row for row in rows} for rows in (old, new)]
    return named[0], named[1]
