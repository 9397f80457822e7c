"""
Reads configuration: file, then environment, then strict structure.

An error names file and key path and says what was meant: ``cortex.toml: gateway.lisen: unknown key
(did you mean 'listen'?)``.  Paths inside a file are relative to that file.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import attrs
import tomlkit
import tomlkit.exceptions

from cortex.config.mistakes import Mistakes
from cortex.config.schema import (
    Address,
    AuditSection,
    AuthSection,
    Catalogue,
    GatewayConfig,
    GatewaySection,
    LedgerSection,
    NeuronConfig,
    NeuronEntry,
    PluginSettings,
    RepliesSection,
    TlsSection,
    TracingSection,
    UpstreamEntry,
)
from cortex.config.strict import FromEnvironment, shown, structure
from cortex.errors import ConfigError
from cortex.fleet.principal import ANONYMOUS, Key

S = TypeVar("S", TlsSection, NeuronEntry, UpstreamEntry, AuditSection)
PREFIXES = MappingProxyType({GatewayConfig: "CORTEX_", NeuronConfig: "NEURON_"})
NODE_FILES = ("ca", "client_cert", "client_key")


def environment() -> Mapping[str, str]:
    """Return the process's environment; nothing else in cortex reads it."""
    return os.environ


def cache_dir() -> Path:
    """Return where downloads are kept: ``$CORTEX_CACHE``, else ``$XDG_CACHE_HOME/cortex``."""
    env = environment()
    if own := env.get("CORTEX_CACHE"):
        return Path(own)
    home = os.path.expanduser("~/.cache")  # noqa: PTH111 - a user without a home is no error
    return Path(env.get("XDG_CACHE_HOME") or home) / "cortex"


def default_file(name: str) -> Path | None:
    """Return ``./name`` if there is one: what a program reads without ``--config``."""
    path = Path(name)
    return path if path.exists() else None


def address_option(option: str, text: str | None, otherwise: Address) -> Address:
    """
    Return the address a command line option gives, or the one of the configuration.

    Raises:
        ConfigError: Names the option.
    """
    try:
        return Address.parse(text) if text else otherwise
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None


def load_gateway(path: Path | None) -> tuple[GatewayConfig, Catalogue]:
    """
    Read cortex.toml and the models.toml it names.

    Args:
        path: None means all defaults, and an empty catalogue where no models.toml is.

    Raises:
        ConfigError: Names the file and the key path.
    """
    table = read_table(path, GatewayConfig)
    where = path.name if path else "cortex.toml"
    folder = path.parent if path else Path()
    mistakes = Mistakes()
    with mistakes:
        config = _gateway(table, folder, where)
    with mistakes:
        catalogue = _catalogue(table, folder, where, needed=path is not None)
    mistakes.raise_any()
    return config, catalogue


def _gateway(table: Mapping[str, Any], folder: Path, where: str) -> GatewayConfig:
    config = structure(table, GatewayConfig, where)
    mistakes = Mistakes()
    with mistakes:
        check_neurons(config, where)
    with mistakes:
        _check_auth(config.auth, where)
    for least, value, key in (
        (0, config.gateway.drain_s, "gateway.drain_s"),
        (1, config.queue.max_depth, "queue.max_depth"),
        (0, config.queue.max_wait_s, "queue.max_wait_s"),
        (0, config.eviction.min_residency_s, "eviction.min_residency_s"),
    ):
        with mistakes:
            _at_least(least, value, f"{where}: {key}")
    with mistakes:
        config = attrs.evolve(config, replies=_replies(config.replies, folder, where, "gateway"))
    with mistakes:
        config = attrs.evolve(config, tracing=_tracing(config.tracing, where))
    mistakes.raise_any()
    return attrs.evolve(
        config,
        plugins=_plugin_settings(config.plugins, folder),
        gateway=attrs.evolve(
            config.gateway,
            tls=_tls(config.gateway.tls, folder),
            state_path=_state(config.gateway.state_path, folder, "gateway-state.json"),
        ),
        neurons=tuple(_beside(folder, entry, *NODE_FILES) for entry in config.neurons),
        upstreams=tuple(_beside(folder, entry, *NODE_FILES) for entry in config.upstreams),
        audit=_beside(folder, config.audit, "path"),
        ledger=LedgerSection(path=_state(config.ledger.path, folder, "gateway-ledger.db")),
    )


def catalogue_path(table: Mapping[str, Any], folder: Path) -> Path:
    """Return where models.toml is, as far as a cortex.toml's *table* can be understood."""
    section = table.get("gateway")
    name = section.get("models_config") if isinstance(section, Mapping) else None
    return folder / (name if isinstance(name, str) else GatewaySection().models_config)


def _catalogue(table: Mapping[str, Any], folder: Path, where: str, *, needed: bool) -> Catalogue:
    path = catalogue_path(table, folder)
    if path.exists():
        return load_catalogue(path)
    if needed:
        raise ConfigError(
            f"{where}: gateway.models_config: no file {path}",
            hint="make it, it may be empty, or name another",
        )
    return Catalogue()


def load_catalogue(path: Path) -> Catalogue:
    """Read models.toml."""
    catalogue = structure(_read(path), Catalogue, path.name)
    mistakes = Mistakes()
    for number, model in enumerate(catalogue.models):
        at = f"{path.name}: models[{number}]"
        for least, value, key in (
            (1, model.min_devices, "min_devices"),
            (0, model.min_device_vram_mb, "min_device_vram_mb"),
            (0, model.vram_mb or 0, "vram_mb"),
            (1, 1 if model.context is None else model.context, "context"),
            (0, model.ttl_s, "ttl_s"),
        ):
            with mistakes:
                _at_least(least, value, f"{at}.{key}")
        with mistakes:
            _at_least(1, len(model.id), f"{at}.id", "length ")
    ids = Counter(model.id for model in catalogue.models)
    twice = [model_id for model_id, count in ids.items() if count > 1]
    with mistakes:
        for model_id in twice:
            raise ConfigError(f"{path.name}: models: {model_id!r} is listed twice")
    for alias in catalogue.aliases:
        with mistakes:
            if alias in ids:
                raise ConfigError(f"{path.name}: aliases.{alias}: is also the id of a model")
    mistakes.raise_any()
    return catalogue


def _at_least(least: float, value: float, where: str, what: str = "") -> None:
    if value < least:
        raise ConfigError(f"{where}: expected {what}at least {least}, got {value:g}")


def load_neuron(path: Path | None) -> NeuronConfig:
    """Read neuron.toml; None means all defaults."""
    table = read_table(path, NeuronConfig)
    where = path.name if path else "neuron.toml"
    config = structure(table, NeuronConfig, where)
    mistakes = Mistakes()
    for number, model in enumerate(config.default_models):
        with mistakes:
            context = 1 if model.context is None else model.context
            _at_least(1, context, f"{where}: default_models[{number}].context")
    mistakes.raise_any()
    folder = path.parent if path else Path()
    return attrs.evolve(
        config,
        plugins=_plugin_settings(config.plugins, folder),
        tls=_tls(config.tls, folder),
        replies=_replies(config.replies, folder, where, "neuron"),
        tracing=_tracing(config.tracing, where),
    )


def read_table(path: Path | None, cls: type[Any]) -> dict[str, Any]:
    """
    Return a file as the environment has it: what a variable says is a `FromEnvironment`.

    Args:
        path: None is an empty file.
        cls: What it is to be.

    Raises:
        ConfigError: It cannot be read, or is no TOML.
    """
    table = _read(path) if path else {}
    if (prefix := PREFIXES.get(cls)) is not None:
        _override(table, prefix, cls)
    return table


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(tomlkit.loads(path.read_text("utf-8")).unwrap())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except tomlkit.exceptions.ParseError as error:
        raise ConfigError(
            f"{path.name}: line {error.line}, column {error.col}: {_said(error)}"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, tomlkit.exceptions.TOMLKitError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _said(error: tomlkit.exceptions.ParseError) -> str:
    said = str(error).rpartition(" at line ")[0] or str(error)
    return "Unexpected end of file" if "'\\x00'" in said else said


def check_neurons(config: GatewayConfig, where: str) -> None:
    """
    Check what a type cannot: names of nodes are unique, endpoints are addresses.

    Raises:
        ConfigError: Names the entry.
    """
    entries: dict[str, NeuronEntry | UpstreamEntry] = {
        **{f"neurons[{number}]": entry for number, entry in enumerate(config.neurons)},
        **{f"upstreams[{number}]": entry for number, entry in enumerate(config.upstreams)},
    }
    names: set[str] = set()
    mistakes = Mistakes()
    for key, entry in entries.items():
        at = f"{where}: {key}"
        with mistakes:
            if entry.name in names:
                raise ConfigError(f"{at}.name: {entry.name!r} is taken by another node")
        with mistakes:
            if not _is_endpoint(entry.endpoint):
                said = f"expected http://host:port, got {entry.endpoint!r}"
                raise ConfigError(f"{at}.endpoint: {said}")
        with mistakes:
            if isinstance(entry, UpstreamEntry) and not entry.dialects:
                raise ConfigError(f"{at}.dialects: at least one is needed")
        names.add(entry.name)
    mistakes.raise_any()


def check_keys(keys: Sequence[Key], where: str) -> None:
    """
    Check that keys can be told apart.

    Raises:
        ConfigError: Names the entry.
    """
    names, digests = [key.name for key in keys], [key.sha256 for key in keys]
    mistakes = Mistakes()
    for number, key in enumerate(keys):
        at = f"{where}: auth.keys[{number}]"
        with mistakes:
            if key.name in names[:number]:
                raise ConfigError(f"{at}.name: {key.name!r} is taken by another key")
            if key.sha256 in digests[:number]:
                raise ConfigError(f"{at}.sha256: is also that of another key")
        with mistakes:
            if key.name == ANONYMOUS:
                raise ConfigError(f"{at}.name: {ANONYMOUS!r} is who has no key; see auth.anonymous")
    mistakes.raise_any()


def _check_auth(auth: AuthSection, where: str) -> None:
    check_keys(auth.keys, where)
    if auth.require and auth.is_open:
        raise ConfigError(
            f"{where}: auth.require: no key is configured, so nobody could be let in",
            hint="cortex keys new NAME --admin",
        )


def _is_endpoint(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # of the port
        return False


def _plugin_settings(settings: PluginSettings, folder: Path) -> PluginSettings:
    env = environment()
    data = env.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")  # noqa: PTH111 - never raises
    home = Path(data) / "cortex" / "plugins"
    directories = [folder / directory for directory in settings.directories]
    if home.is_dir():
        directories.append(home)
    only = settings.only
    if (named := env.get("CORTEX_PLUGINS")) is not None:
        only = frozenset(filter(None, (name.strip() for name in named.split(","))))
    return attrs.evolve(settings, directories=tuple(directories), only=only)


def _tls(section: TlsSection | None, folder: Path) -> TlsSection | None:
    return section and _beside(folder, section, "cert", "key", "client_ca")


def _beside(folder: Path, section: S, *names: str) -> S:
    """Return *section* with its paths, which are relative to its file's *folder*, resolved."""
    paths = {name: getattr(section, name) for name in names}
    found = {name: folder / path for name, path in paths.items() if path is not None}
    return attrs.evolve(section, **found)


def _replies(section: RepliesSection, folder: Path, where: str, program: str) -> RepliesSection:
    _at_least(0, section.max_count, f"{where}: replies.max_count")
    _at_least(1, section.max_mb, f"{where}: replies.max_mb")
    _at_least(1, section.ttl_s, f"{where}: replies.ttl_s")
    return attrs.evolve(section, path=_state(section.path, folder, f"{program}-replies.db"))


def _tracing(section: TracingSection, where: str) -> TracingSection:
    """Return *section* with what OpenTelemetry's own variables say where it says nothing."""
    env = environment()
    endpoint = section.endpoint or env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None
    if endpoint is not None and not _is_endpoint(endpoint):
        at = f"{where}: tracing.endpoint" if section.endpoint else "OTEL_EXPORTER_OTLP_ENDPOINT"
        raise ConfigError(f"{at}: expected http://host:port, got {endpoint!r}")
    if not 0 <= section.sample <= 1:
        raise ConfigError(f"{where}: tracing.sample: expected 0 to 1, got {section.sample:g}")
    service = section.service or env.get("OTEL_SERVICE_NAME") or None
    return attrs.evolve(section, endpoint=endpoint, service=service)


def _state(path: Path | None, folder: Path, otherwise: str) -> Path:
    """Return where something is kept: as *folder*'s file says, else where the user's state is."""
    if path is not None:
        return folder / path
    state = environment().get("XDG_STATE_HOME")
    home = Path(state or os.path.expanduser("~/.local/state"))  # noqa: PTH111 - never raises
    return home / "cortex" / otherwise


def _override(table: dict[str, Any], prefix: str, cls: type[Any]) -> None:
    """Apply ``PREFIX_SECTION__KEY=value`` where the first part is a key of *cls*."""
    known = {field.name for field in attrs.fields(cls)}
    for name, value in environment().items():
        keys = name.removeprefix(prefix).lower().split("__")
        if not name.startswith(prefix) or keys[0] not in known or name == "CORTEX_PLUGINS":
            continue
        inner = table
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{name}: {key} is no table, but {shown(inner)}")
        inner[keys[-1]] = FromEnvironment(value)
