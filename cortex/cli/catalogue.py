"""What ``GET /v1/models`` lists, and how it is shown."""

from __future__ import annotations

import attrs
from rich.console import RenderableType
from rich.text import Text

from cortex.cli.client import Gateway
from cortex.cli.console import state, table
from cortex.fleet.node import Limit


@attrs.frozen(kw_only=True)
class Location:
    """A node that has a model, or is about to."""

    node: str
    status: str
    progress: float | None = None


@attrs.frozen(kw_only=True)
class Entry:
    """A row of ``/v1/models``: a model, or an alias of one if `alias_of` is set."""

    id: str
    loaded: bool = False
    feasible_on: tuple[str, ...] = ()
    locations: tuple[Location, ...] = ()
    capabilities: tuple[str, ...] = ()
    limit: Limit = attrs.field(factory=Limit)
    max_model_len: int | None = None
    aliases: tuple[str, ...] = ()
    alias_of: str | None = None

    @property
    def context(self) -> int:
        """Tokens of context; 0 is unknown."""
        return self.limit.context or self.max_model_len or 0

    @property
    def chats(self) -> bool:
        """Whether it answers chats; a model that does not say is taken to."""
        return not self.capabilities or "text" in self.capabilities


@attrs.frozen(kw_only=True)
class Listing:
    """``GET /v1/models``."""

    data: tuple[Entry, ...] = ()


def models(gateway: Gateway) -> list[Entry]:
    """Return the models of a gateway, each with all its aliases."""
    rows = gateway.get_as(Listing, "/v1/models").data
    aliases: dict[str, set[str]] = {}
    for row in rows:
        if row.alias_of:
            aliases.setdefault(row.alias_of, set()).add(row.id)
    return [
        attrs.evolve(row, aliases=tuple(sorted({*row.aliases, *aliases.get(row.id, ())})))
        for row in rows
        if not row.alias_of
    ]


def show(entries: list[Entry]) -> RenderableType:
    """Return *entries* as a table."""
    if not entries:
        return Text("the catalogue is empty: add [[models]] to models.toml")
    has_aliases = any(entry.aliases for entry in entries)
    aliases = ["ALIASES"] if has_aliases else []
    rows = table(
        *("MODEL", "STATE", "WHERE", "CONTEXT", "CAN", *aliases),
        right=frozenset({"CONTEXT"}),
        wrap=frozenset({"MODEL", "WHERE", "CAN", "ALIASES"}),
    )
    for entry in entries:
        word, after, where = _standing(entry)
        rows.add_row(
            Text(entry.id),
            state(word, after),
            Text(where),
            str(entry.context or ""),
            Text(", ".join(entry.capabilities)),
            *([Text(", ".join(entry.aliases))] if has_aliases else []),
        )
    return rows


def _standing(entry: Entry) -> tuple[str, str, str]:
    """Return the state of a model, what to say after it, and where that is."""
    for word in ("loaded", "loading"):
        there = [place for place in entry.locations if place.status == word]
        if there:
            progress = max((place.progress or 0 for place in there), default=0)
            after = f" {progress:.0%}" if word == "loading" else ""
            return word, after, ", ".join(place.node for place in there)
    if entry.locations:
        return entry.locations[0].status, "", ", ".join(place.node for place in entry.locations)
    if entry.feasible_on:
        return "on demand", "", ", ".join(entry.feasible_on)
    return "nowhere", "", "no node can hold it"
