"""
Reads a table of a configuration into typed values, strictly; errors name the key path.

No kind of value is taken for another: a number is no string, ``1`` is not ``true``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import attrs
import tomlkit
import tomlkit.exceptions
from cattrs import ClassValidationError, Converter, ForbiddenExtraKeysError, transform_error
from cattrs.gen import make_dict_structure_fn, mapping_structure_factory

from cortex.config.schema import Address
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


class FromEnvironment(str):
    """The text of a variable; what it is to be, the place it goes to says."""

    __slots__ = ()

    def value(self) -> Any:
        """Return it read as TOML, or as it is."""
        try:
            return tomlkit.value(self).unwrap()
        except (tomlkit.exceptions.TOMLKitError, ValueError):
            return str(self)


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
        said = (line for problem in problems for line in _place(problem, where))
        raise ConfigError.of([*map(ConfigError, said)]) from None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from None


def _strict(kind: Callable[[Any], object]) -> Callable[[Any, Any], Any]:
    def hook(value: Any, _: Any) -> Any:
        if isinstance(value, FromEnvironment):
            value = str(value) if kind is str else value.value()
        if type(value) is kind or (kind is float and type(value) is int):
            return kind(value)
        raise ValueError(f"expected {_KINDS[kind]}, got {shown(value)}")

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
            tables = isinstance(value, Mapping) and attrs.has(get_args(cls)[0])
            hint = " (its name goes between [[ and ]])" if tables else ""
            raise ValueError(f"expected a list, got {shown(value)}{hint}")  # noqa: TRY004 - collected
        return get_origin(cls)(structure_items(value, cls))

    return hook


def _one_of(cls: Any) -> Callable[[Any, Any], Any]:
    known = get_args(cls)

    def hook(value: Any, _: Any) -> Any:
        if value in known:
            return value
        raise ValueError(f"expected {' or '.join(map(repr, known))}, got {shown(value)}")

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
            raise ValueError(f"expected a table, got {shown(value)}")  # noqa: TRY004 - collected
        return structure_table(value, wanted)

    return hook


def _from_string(parse: Callable[[str], T]) -> Callable[[Any, Any], T]:
    def hook(value: Any, _: Any) -> T:
        if not isinstance(value, str):
            raise ValueError(f"expected a string, got {shown(value)}")  # noqa: TRY004 - collected
        return parse(value)

    return hook


def shown(value: object) -> str:
    """Return *value* as an error shows it, with what it is."""
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


def _place(problem: str, where: str) -> Iterator[str]:
    """Turn ``said @ $.path`` into ``where: path: said``; a tab before `said` extends the path."""
    said, _, path = problem.rpartition(" @ $")
    path = path.lstrip(".")
    for line in said.split("\n"):
        key, tab, rest = line.rpartition("\t")
        full = ".".join(filter(None, [path, key])) if tab else path
        yield ": ".join(filter(None, [where, full, rest]))


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
