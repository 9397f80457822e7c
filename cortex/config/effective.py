"""
A configuration as it is in force: every value, and who said it; secrets are never shown.

A table among several is named by its number, as in errors: ``neurons[0].endpoint``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from cortex.config.diff import MASK, shown
from cortex.config.load import PREFIXES, environment
from cortex.config.strict import FromEnvironment

DEFAULT = "default"
_SECRET = re.compile(r"token|secret|passw|key|credential", re.IGNORECASE)
_PLACE = re.compile(r"_(file|path|dir|env|url)$")  # says where a secret is
_LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_PLUGINS = ("harness.", "sources.")  # tables whose options are theirs
_OPENTELEMETRY = {
    "tracing.endpoint": "OTEL_EXPORTER_OTLP_ENDPOINT",
    "tracing.service": "OTEL_SERVICE_NAME",
}


@attrs.frozen(kw_only=True)
class Value:
    """
    One value.

    Attributes:
        source: ``default``, the name of the file, or the variable.
    """

    key: str
    value: Any
    source: str


def values(config: Any, table: Mapping[str, Any], where: str) -> Iterator[Value]:
    """
    Yield every value of a configuration.

    Args:
        config: A `GatewayConfig`, `NeuronConfig` or `Catalogue`.
        table: What it was read from, by `cortex.config.load.read_table`.
        where: The name of the file.
    """
    prefix = PREFIXES.get(type(config), "")
    env = environment()
    for key, value, said in _leaves(shown(config), table, "", where):
        source = said
        if said not in (DEFAULT, where):
            source = prefix + said
        elif key == "plugins.only" and "CORTEX_PLUGINS" in env:
            source = "CORTEX_PLUGINS"
        elif said == DEFAULT and value is not None and key in _OPENTELEMETRY:
            source = _OPENTELEMETRY[key]
        yield Value(key=key, value=_masked(key, value), source=source)


def _leaves(value: Any, said: Any, key: str, source: str) -> Iterator[tuple[str, Any, str]]:
    """
    Yield key, value and who said it: `DEFAULT`, the file, or a variable without its prefix.

    Args:
        value: As `shown` has it.
        said: What file and environment say, or None.
        key: Its path.
        source: Who said what is around it.
    """
    if isinstance(said, FromEnvironment):
        source, said = key.upper().replace(".", "__"), said.value()
    parts: dict[str, Any] = {}
    if isinstance(value, dict):
        parts = {f"{key}.{name}" if key else name: name for name in value}
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        parts = {f"{key}[{number}]": number for number in range(len(value))}
    for path, part in parts.items():
        yield from _leaves(value[part], _inside(said, part), path, source)
    if not parts:
        yield key, value, DEFAULT if said is None else source


def _inside(said: Any, part: str | int) -> Any:
    try:
        return None if isinstance(said, str) else said[part]
    except (KeyError, IndexError, TypeError):
        return None


def _masked(key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    name = key.rpartition(".")[2]
    if key.startswith(_PLUGINS) and _SECRET.search(name) and not _PLACE.search(name):
        return MASK
    return _LOGIN.sub(MASK, value)
