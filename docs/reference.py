"""
What the code says, for the pages of those who configure and extend.

In configuration.md that is the table of each section, from the attrs classes and what their
docstrings say of each attribute; in hooks.md the signature and the docstring of each hook.  All
else on the two pages is written by hand, and stays.  A test compares, and renews them.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import attrs
from attrs import NOTHING

from cortex import hookspecs
from cortex.config.load import PREFIXES
from cortex.config.schema import Address, Catalogue, GatewayConfig, NeuronConfig, PluginSettings
from cortex.plugins import Plugins

DOCS = Path(__file__).parent
FILES: tuple[type[Any], ...] = (GatewayConfig, Catalogue, NeuronConfig)
OPTIONS = {"harness": "harness", "source": "sources"}  # a kind of offer, and the table it is in
LINE = 100
TOP_LEVEL = "Top level"
ENVIRONMENT = "In the environment: "
BY_HAND = ("`[aliases]`",)  # a table of names, not of keys
COMMANDS = {"gateway": "cortex.gateway.command", TOP_LEVEL: "cortex.neuron.command"}
KINDS = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    Path: "path",
    Address: "`host:port`",
}


@attrs.frozen(kw_only=True)
class Section:
    """
    A table of a configuration file.

    Attributes:
        heading: As it is on the page.
        cls: What it is read into.
        variables: What a variable for one of its keys begins with; none where there is no variable.
    """

    heading: str
    cls: type[Any]
    variables: tuple[str, ...] = ()


# Configuration.


def sections() -> list[Section]:
    """Return every section, once where two files have it."""
    found: dict[str, Section] = {}
    for cls in FILES:
        for section in _sections(cls, "", PREFIXES.get(cls)):
            before = found.get(section.heading, attrs.evolve(section, variables=()))
            both = (*before.variables, *section.variables)
            found[section.heading] = attrs.evolve(section, variables=both)
    found[TOP_LEVEL] = Section(
        heading=TOP_LEVEL, cls=NeuronConfig, variables=(PREFIXES[NeuronConfig],)
    )
    return [*found.values(), *_offered()]


def _sections(cls: type[Any], prefix: str, variables: str | None) -> Iterator[Section]:
    for name, hint in _hints(cls).items():
        inside = None if variables is None else f"{variables}{name.upper()}__"
        if _is_table(hint):
            yield Section(
                heading=f"`[{prefix}{name}]`", cls=hint, variables=(inside,) if inside else ()
            )
            yield from _sections(hint, f"{prefix}{name}.", inside)
        elif get_origin(hint) is tuple and _is_table(get_args(hint)[0]):
            yield Section(heading=f"`[[{prefix}{name}]]`", cls=get_args(hint)[0])


def _offered() -> Iterator[Section]:
    plugins = Plugins(PluginSettings(only=frozenset()))
    for kind, table in OPTIONS.items():
        for offer in plugins.offers(kind):
            if offer.options is not None:
                variable = f"{PREFIXES[NeuronConfig]}{table}__{offer.name}__".upper()
                yield Section(
                    heading=f"`[{table}.{offer.name}]`", cls=offer.options, variables=(variable,)
                )
                yield from _sections(offer.options, f"{table}.{offer.name}.", variable)


def _hints(cls: type[Any]) -> dict[str, Any]:
    """Return the type of each field, which may be None besides."""
    hints = get_type_hints(cls)
    found = {}
    for field in attrs.fields(cls):
        hint = hints[field.name]
        if isinstance(hint, UnionType):
            hint = next(kind for kind in get_args(hint) if kind is not type(None))
        found[field.name] = hint
    return found


def _is_table(hint: Any) -> bool:
    return attrs.has(hint) and hint is not Address


def table(section: Section) -> str:
    """Return the rows of a section, and how else its keys are set."""
    said, hints, keys = _attributes(section.cls), _hints(section.cls), []
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for field in sorted(attrs.fields(section.cls), key=lambda each: each.default is not NOTHING):
        name, hint = field.name, hints[field.name]
        has_section = _is_table(hint) or (
            get_origin(hint) is tuple and _is_table(get_args(hint)[0])
        )
        if has_section or (section.heading == TOP_LEVEL and name in OPTIONS.values()):
            continue
        keys.append(name)
        rows.append(f"| `{name}` | {_kind(hint)} | {_default(field)} | {said[name]} |")
    return "\n".join([*rows, *_elsewhere(section, keys)])


def _elsewhere(section: Section, keys: list[str]) -> Iterator[str]:
    if section.variables:
        shown = " or ".join(f"`{prefix}{keys[0].upper()}`" for prefix in section.variables)
        rest = " and so on" if len(keys) > 1 else ""
        flags = ", ".join(f"`{flag}`" for flag in _flags(section, keys))
        yield f"\n{ENVIRONMENT}{shown}{rest}{f'; on the command line: {flags}' * bool(flags)}."


def _flags(section: Section, keys: list[str]) -> Iterator[str]:
    module = COMMANDS.get(section.heading.strip("`[]"))
    if module is not None:
        parser = argparse.ArgumentParser()
        import_module(module).add_arguments(parser)
        yield from (action.option_strings[-1] for action in parser._actions if action.dest in keys)  # noqa: SLF001 - nothing else lists them


def _kind(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{each}`" for each in parts)
    if origin in (tuple, frozenset):
        return f"list of {_kind(parts[0])}s"
    return "table" if origin is Mapping else KINDS[hint]


def _default(field: attrs.Attribute[Any]) -> str:
    factory = getattr(field.default, "factory", None)
    value = field.default if factory is None else factory()
    if value is NOTHING:
        return "required"
    if value is None:
        return "-"
    if isinstance(value, tuple | Mapping):
        plain = list(value) if isinstance(value, tuple) else dict(value)
        return f"`{plain}`".replace("'", '"')
    if isinstance(value, str | Address | Path):
        return f'`"{value}"`'
    return f"`{str(value).lower()}`"


def _attributes(cls: type[Any]) -> dict[str, str]:
    """Return what the docstrings of a class, and of those it is made of, say of attributes."""
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        lines = inspect.cleandoc(each.__doc__ or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", lines, re.MULTILINE):
            found[name] = _markdown(" ".join(text.split()))
    return found


def _markdown(text: str) -> str:
    return text.replace("``", "`")


# Hooks.


def hooks() -> dict[str, str]:
    """Return what there is to say of each hook, by its heading."""
    found = {}
    for name, hook in vars(hookspecs).items():
        if name.startswith("cortex_") and inspect.isfunction(hook):
            signature = inspect.signature(hook)
            heading = f"`{name}({', '.join(signature.parameters)})`"
            said = re.sub(r"(?<=[^\n])\n(?=[^\n])", " ", _markdown(inspect.getdoc(hook) or ""))
            sentences = re.sub(r"(?<=\.) +(?=[A-Z*`])", "\n", said)
            found[heading] = f"```py\n{_declared(name, signature)}\n```\n\n{sentences}"
    return found


def _declared(name: str, signature: inspect.Signature) -> str:
    """Return it as ruff formats it, in Markdown too; annotations are strings."""
    parameters = [str(each).replace("'", "") for each in signature.parameters.values()]
    line = f"def {name}({', '.join(parameters)}) -> {signature.return_annotation}: ..."
    if len(line) <= LINE:
        return line
    lines = "".join(f"    {each},\n" for each in parameters)
    return f"def {name}(\n{lines}) -> {signature.return_annotation}: ..."


# Pages.


def sectioned(page: str, renew: Mapping[str, Callable[[str], str]]) -> str:
    """
    Return a page whose sections are renewed.

    Args:
        page: As it is.
        renew: By heading, what becomes of the text under it.

    Raises:
        ValueError: A heading is missing, or is there and has nothing to be written from.
    """
    parts = re.split(r"^(#+ .+)$", page, flags=re.MULTILINE)
    headings = [heading.lstrip("# ") for heading in parts[1::2]]
    named = {heading for heading in headings if heading.startswith(("`[", "`cortex_"))}
    if wrong := (named - {*renew, *BY_HAND}) | (renew.keys() - set(headings)):
        raise ValueError(f"headings without an origin, or the other way round: {sorted(wrong)}")
    for index, heading in enumerate(headings):
        if heading in renew:
            parts[2 * index + 2] = renew[heading](parts[2 * index + 2])
    return "".join(parts)


def configuration(page: str) -> str:
    """Return configuration.md with its tables anew."""

    def renewed(section: Section) -> Callable[[str], str]:
        def renew(text: str) -> str:
            old = re.compile(rf"(^\|.*\n)+(\n{ENVIRONMENT}.*\n)?", re.MULTILINE)
            new = f"{table(section)}\n"
            if old.search(text):
                return old.sub(lambda _: new, text, count=1)
            return f"{text.rstrip()}\n\n{new}\n"

        return renew

    return sectioned(page, {each.heading: renewed(each) for each in sections()})


def hooks_page(page: str) -> str:
    """Return hooks.md with its hooks anew; what follows a quotation of the code is kept."""

    def renewed(said: str) -> Callable[[str], str]:
        def renew(text: str) -> str:
            at = text.find("```{literalinclude}")
            return f"\n\n{said}\n\n{text[at:] if at >= 0 else ''}"

        return renew

    return sectioned(page, {heading: renewed(said) for heading, said in hooks().items()})


PAGES = {"configuration.md": configuration, "hooks.md": hooks_page}
