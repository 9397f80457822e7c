"""Name -> offer tables, one per extension point."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

import attrs

from cortex.api import Register
from cortex.config.strict import structure
from cortex.errors import ConfigError, PluginError

T = TypeVar("T")
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
LONGEST_NAME = 256  # comparing one of megabytes takes seconds


@attrs.frozen(kw_only=True)
class Offer(Generic[T]):
    """A named implementation, who offers it, and how its options are typed."""

    kind: str
    name: str
    plugin: str
    factory: Callable[..., T]
    options: type[Any] | None
    summary: str

    def build(
        self, *arguments: object, table: Mapping[str, Any] | None = None, where: str = ""
    ) -> T:
        """
        Call the factory.

        Args:
            arguments: What every factory of this kind gets, after the options.
            table: The offer's table of the configuration.
            where: Where that table stands, for errors: ``neuron.toml: harness.torch``.

        Raises:
            ConfigError: The table has a key or a type the options do not.
        """
        options = self.read(table, where)
        return self.factory(*arguments) if options is None else self.factory(options, *arguments)

    def read(self, table: Mapping[str, Any] | None, where: str) -> Any:
        """Return its options as a table has them, or None if it takes none; raises as `build`."""
        if self.options is not None:
            return structure(table or {}, self.options, where)
        if table:
            raise ConfigError(f"{where}: {self.kind} {self.name!r} takes no options")
        return None


class Registry(Generic[T]):
    """The offers of one kind, e.g. all routing strategies."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._offers: dict[str, Offer[T]] = {}

    def registrar(self, plugin: str) -> Register[T]:
        """Return the `register` callable a hook receives, bound to *plugin*."""

        def register(
            name: str,
            factory: Callable[..., T],
            *,
            options: type[Any] | None = None,
            summary: str = "",
        ) -> None:
            if not _NAME.fullmatch(name):
                raise PluginError(f"{self.kind} name {name!r} is not lower-case kebab")
            if (taken := self._offers.get(name)) is not None:
                raise PluginError(f"{self.kind} {name!r} is already offered by {taken.plugin}")
            self._offers[name] = Offer(
                kind=self.kind,
                name=name,
                plugin=plugin,
                factory=factory,
                options=options,
                summary=summary,
            )

        return register

    def __getitem__(self, name: str) -> Offer[T]:
        try:
            return self._offers[name]
        except KeyError:
            hint = did_you_mean(name, self._offers)
            raise ConfigError(f"no {self.kind} is called {name!r}", hint=hint) from None

    def __contains__(self, name: object) -> bool:
        return name in self._offers

    def __iter__(self) -> Iterator[Offer[T]]:
        return iter(self._offers.values())

    def __len__(self) -> int:
        return len(self._offers)


def nearest(name: str, known: Iterable[str], alike: float = 0.6) -> str:
    """Return a hint: the nearest of *known*; empty if none is so much *alike*."""
    near = get_close_matches(name[:LONGEST_NAME], list(known), n=1, cutoff=alike)
    return f"did you mean {near[0]!r}?" if near else ""


def did_you_mean(name: str, known: Mapping[str, object]) -> str:
    """Return a hint: the nearest of *known*, or all of them."""
    if hint := nearest(name, known):
        return hint
    return f"known: {', '.join(sorted(known))}" if known else "none is known"
