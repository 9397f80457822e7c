"""What a client is pointed at: a gateway, a key and a model."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from cortex.cli import catalogue
from cortex.cli.catalogue import Entry
from cortex.cli.client import Gateway
from cortex.errors import CortexError
from cortex.registry import did_you_mean

NO_KEY = "none"  # programs insist on one
OUTPUT = 8192  # tokens, where nobody says


@attrs.frozen(kw_only=True)
class Target:
    """
    A model behind a gateway.

    Attributes:
        url: Without a path.
        context: Tokens; 0 is unknown.
        output: Tokens of an answer at most.
    """

    url: str
    key: str
    model: str
    context: int = 0
    output: int = OUTPUT
    capabilities: tuple[str, ...] = ()

    @classmethod
    def of(cls, gateway: Gateway, name: str | None) -> Target:
        """
        Return the model *name* of a gateway, or the one that fits best.

        Raises:
            CortexError: There is none.
        """
        entry = choose(catalogue.models(gateway), name)
        most = entry.limit.output or OUTPUT
        quarter = entry.context // 4 or most  # what is told is kept free of the prompt
        return cls(
            url=gateway.url,
            key=gateway.headers.get("Authorization", "").removeprefix("Bearer ") or NO_KEY,
            model=name or entry.id,
            context=entry.context,
            output=min(most, max(quarter, 1)),
            capabilities=entry.capabilities,
        )


def choose(entries: Sequence[Entry], name: str | None) -> Entry:
    """
    Return the entry of a name, or the best: loaded before on demand, with tools before without.

    Raises:
        CortexError: Names what there is.
    """
    if name is not None:
        named = {each: entry for entry in entries for each in (entry.id, *entry.aliases)}
        if name not in named:
            hint = did_you_mean(name, named)
            raise CortexError(f"the gateway has no model {name!r}", hint=hint)
        return named[name]
    able = [entry for entry in entries if entry.chats]
    if not able:
        hint = "add [[models]] to models.toml"
        raise CortexError("the gateway knows no model to talk to", hint=hint)
    return max(able, key=lambda e: (e.loaded, "tools" in e.capabilities, e.context))
