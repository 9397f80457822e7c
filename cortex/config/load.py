"""
Reads configuration: file, then environment, then strict structure.

An error names file and key path and says what was meant: ``cortex.toml: gateway.lisen: unknown key
(did you mean 'listen'?)``.  Paths inside a file are relative to that file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin
from urllib.parse import urlsplit

import attrs
import tomlkit
import tomlkit.exceptions
from cattrs import ClassValidationError, Converter, ForbiddenExtraKeysError, transform_error
from cattrs.gen import make_dict_structure_fn, mapping_structure_factory

from cortex.config.schema import (
    Address,
    Catalogue,
    GatewayConfig,
    NeuronConfig,
    NeuronEntry,
    PluginSettings,
    RepliesSection,
    UpstreamEntry,
)
from cortex.errors import ConfigError

T = TypeVar("T")
_KINDS: dict[Callable[[Any], object], str] = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a table",
}


def environment() -> Mapping[str, str]:
    """Return the process's environment; nothing else in cortex reads it."""
    return os.environ


class FromEnvironment(str):
    """The text of a variable; what it is to be, the place it goes to says."""

    __slots__ = ()

    def value(self) -> Any:
        """Return it read as TOML, or as it is."""
        try:
            return tomlkit.value(self).unwrap()
        except (tomlkit.exceptions.TOMLKitError, ValueError):
            return str(self)


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
    table = _read(path) if path else {}
    _override(table, "CORTEX_", GatewayConfig)
    where = path.name if path else "cortex.toml"
    config = structure(table, GatewayConfig, where)
    folder = path.parent if path else Path()
    check_neurons(config, where)
    _at_least(1, config.queue.max_depth, f"{where}: queue.max_depth")
    _at_least(0, config.queue.max_wait_s, f"{where}: queue.max_wait_s")
    _at_least(0, config.eviction.min_residency_s, f"{where}: eviction.min_residency_s")
    models_path = folder / config.gateway.models_config
    catalogue = Catalogue()
    if path or models_path.exists():
        if not models_path.exists():
            raise ConfigError(f"{where}: gateway.models_config: no file {models_path}")
        catalogue = load_catalogue(models_path)
    config = attrs.evolve(
        config,
        plugins=_plugin_settings(config.plugins, folder),
        replies=_replies(config.replies, folder, where, "gateway"),
    )
    return config, catalogue


def load_catalogue(path: Path) -> Catalogue:
    """Read models.toml."""
    catalogue = structure(_read(path), Catalogue, path.name)
    ids = [model.id for model in catalogue.models]
    for number, model in enumerate(catalogue.models):
        at = f"{path.name}: models[{number}]"
        _at_least(1, len(model.id), f"{at}.id", "length ")
        _at_least(1, model.min_devices, f"{at}.min_devices")
        _at_least(0, model.min_device_vram_mb, f"{at}.min_device_vram_mb")
        _at_least(0, model.vram_mb or 0, f"{at}.vram_mb")
        _at_least(0, model.context or 0, f"{at}.context")
    for model_id in ids:
        if ids.count(model_id) > 1:
            raise ConfigError(f"{path.name}: models: {model_id!r} is listed twice")
    for alias in catalogue.aliases:
        if alias in ids:
            raise ConfigError(f"{path.name}: aliases.{alias}: is also the id of a model")
    return catalogue


def _at_least(least: float, value: float, where: str, what: str = "") -> None:
    if value < least:
        raise ConfigError(f"{where}: expected {what}at least {least}, got {value:g}")


def load_neuron(path: Path | None) -> NeuronConfig:
    """Read neuron.toml; None means all defaults."""
    table = _read(path) if path else {}
    _override(table, "NEURON_", NeuronConfig)
    where = path.name if path else "neuron.toml"
    config = structure(table, NeuronConfig, where)
    folder = path.parent if path else Path()
    return attrs.evolve(
        config,
        plugins=_plugin_settings(config.plugins, folder),
        replies=_replies(config.replies, folder, where, "neuron"),
    )


def structure(table: Mapping[str, Any], cls: type[T], where: str) -> T:
    """
    Read a table into an attrs class, strictly.

    Raises:
        ConfigError: Every problem, each with *where* and its key path.
    """
    try:
        return _converter.structure(table, cls)
    except ClassValidationError as error:
        problems = transform_error(error, "$", _explain)
        raise ConfigError("; ".join(_place(problem, where) for problem in problems)) from None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from None


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
    names = [entry.name for entry in entries.values()]
    for key, entry in entries.items():
        at = f"{where}: {key}"
        if names.count(entry.name) > 1:
            raise ConfigError(f"{at}.name: {entry.name!r} is taken by another node")
        if not _is_endpoint(entry.endpoint):
            raise ConfigError(f"{at}.endpoint: expected http://host:port, got {entry.endpoint!r}")
        if isinstance(entry, UpstreamEntry) and not entry.dialects:
            raise ConfigError(f"{at}.dialects: at least one is needed")


def _is_endpoint(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme == "http" and bool(url.hostname) and url.port != 0
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


def _replies(section: RepliesSection, folder: Path, where: str, program: str) -> RepliesSection:
    _at_least(0, section.max_count, f"{where}: replies.max_count")
    _at_least(1, section.max_mb, f"{where}: replies.max_mb")
    _at_least(1, section.ttl_s, f"{where}: replies.ttl_s")
    if section.path is not None:
        return attrs.evolve(section, path=folder / section.path)
    state = environment().get("XDG_STATE_HOME")
    home = Path(state or os.path.expanduser("~/.local/state"))  # noqa: PTH111 - never raises
    return attrs.evolve(section, path=home / "cortex" / f"{program}-replies.db")


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
                raise ConfigError(f"{name}: {key} is no table, but {_shown(inner)}")
        inner[keys[-1]] = FromEnvironment(value)


def _strict(kind: Callable[[Any], object]) -> Callable[[Any, Any], Any]:
    def hook(value: Any, _: Any) -> Any:
        if isinstance(value, FromEnvironment):
            value = str(value) if kind is str else value.value()
        if type(value) is kind or (kind is float and type(value) is int):
            return kind(value)
        raise ValueError(f"expected {_KINDS[kind]}, got {_shown(value)}")

    return hook


def _is_list(cls: Any) -> bool:
    return get_origin(cls) in (tuple, frozenset)


def _is_choice(cls: Any) -> bool:
    return get_origin(cls) is Literal


def _list_of(cls: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    structure_items = converter.get_structure_hook(list[get_args(cls)[0]])  # type: ignore[misc]

    def hook(value: Any, _: Any) -> Any:
        if isinstance(value, FromEnvironment):
            value = value.value()
        if not isinstance(value, list):
            raise ValueError(f"expected a list, got {_shown(value)}")  # noqa: TRY004 - collected
        return get_origin(cls)(structure_items(value, cls))

    return hook


def _one_of(cls: Any) -> Callable[[Any, Any], Any]:
    known = get_args(cls)

    def hook(value: Any, _: Any) -> Any:
        if value in known:
            return value
        raise ValueError(f"expected {' or '.join(map(repr, known))}, got {_shown(value)}")

    return hook


def _is_table(cls: Any) -> bool:
    return attrs.has(cls) or get_origin(cls) is Mapping


def _table_of(cls: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    make = make_dict_structure_fn if attrs.has(cls) else mapping_structure_factory
    structure_table: Callable[[Any, Any], Any] = make(cls, converter)

    def hook(value: Any, wanted: Any) -> Any:
        if isinstance(value, FromEnvironment):
            value = value.value()
        if not isinstance(value, Mapping):
            raise ValueError(f"expected a table, got {_shown(value)}")  # noqa: TRY004 - collected
        return structure_table(value, wanted)

    return hook


def _from_string(parse: Callable[[str], T]) -> Callable[[Any, Any], T]:
    def hook(value: Any, _: Any) -> T:
        if not isinstance(value, str):
            raise ValueError(f"expected a string, got {_shown(value)}")  # noqa: TRY004 - collected
        return parse(value)

    return hook


def _shown(value: object) -> str:
    kind = next(
        (word for kind, word in _KINDS.items() if type(value) is kind), type(value).__name__
    )
    return kind if isinstance(value, list | dict | bool) else f"{value!r} ({kind})"


def _explain(error: BaseException, _: type | None) -> str:
    if isinstance(error, ForbiddenExtraKeysError):
        known = [field.name for field in attrs.fields(error.cl)]
        return "\n".join(
            f"{key}\t{_near(key, known)}" for key in sorted(map(str, error.extra_fields))
        )
    if isinstance(error, KeyError):
        return "missing"
    if isinstance(error, TypeError):
        return f"expected another type ({error})"
    return str(error)


def _near(key: str, known: list[str]) -> str:
    if near := get_close_matches(key, known, n=1):
        return f"unknown key (did you mean {near[0]!r}?)"
    return f"unknown key (known: {', '.join(known)})"


def _place(problem: str, where: str) -> str:
    """Turn ``said @ $.path`` into ``where: path: said``; a tab before `said` extends the path."""
    said, _, path = problem.rpartition(" @ $")
    path = path.lstrip(".")
    lines = []
    for line in said.split("\n"):
        key, tab, rest = line.rpartition("\t")
        full = ".".join(filter(None, [path, key])) if tab else path
        lines.append(": ".join(filter(None, [where, full, rest])))
    return "; ".join(lines)


def _make_converter() -> Converter:
    converter = Converter(forbid_extra_keys=True, detailed_validation=True)
    for kind in (str, bool, int, float):
        converter.register_structure_hook(kind, _strict(kind))
    converter.register_structure_hook_factory(_is_list)(_list_of)
    converter.register_structure_hook_factory(_is_choice)(_one_of)
    converter.register_structure_hook_factory(_is_table)(_table_of)
    converter.register_structure_hook(Address, _from_string(Address.parse))
    converter.register_structure_hook(Path, _from_string(Path))
    return converter


_converter = _make_converter()
