"""Every value in force, and where it comes from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from cortex.cli.config.files import KINDS, Subject
from cortex.config.effective import DEFAULT, Value, values
from cortex.config.load import catalogue_path, load_catalogue, load_gateway, load_neuron, read_table
from cortex.config.schema import Catalogue, NeuronConfig
from cortex.plugins import Plugins
from cortex.registry import Offer


def run(subjects: Sequence[Subject], args: argparse.Namespace) -> int:
    """Show them; raises `ConfigError` if one cannot be used."""
    shown = {name: found for subject in subjects for name, found in _values(subject)}
    if args.json:
        files = {name: [attrs.asdict(value) for value in found] for name, found in shown.items()}
        print(json.dumps({"files": files}, indent=2, ensure_ascii=False))
        return 0
    from rich.text import Text

    from cortex.cli.console import console, table

    for name, found in shown.items():
        rows = table("KEY", "VALUE", "FROM", wrap=frozenset({"KEY", "VALUE"}))
        for value in found:
            text = "-" if value.value is None else json.dumps(value.value, ensure_ascii=False)
            style = "dim" if value.source == DEFAULT else ""
            rows.add_row(Text(value.key, style), Text(text, style), Text(value.source, style))
        console().print(Text(name, "bold"), rows, sep="\n")
    return 0


def _values(subject: Subject) -> Iterator[tuple[str, list[Value]]]:
    """Yield the files, and what they come to."""
    path, name = subject.path, subject.name
    table = read_table(path, KINDS[subject.kind])
    if subject.kind == "models":
        assert path is not None  # noqa: S101 - a catalogue is never a default
        yield str(path), list(values(load_catalogue(path), table, name))
    elif subject.kind == "neuron":
        config = with_options(load_neuron(path), name)
        yield str(path or "neuron"), list(values(config, table, name))
    else:
        gateway, catalogue = load_gateway(path)
        yield str(path or "gateway"), list(values(gateway, table, name))
        models = catalogue_path(table, path.parent if path else Path())
        if models.exists():
            yield str(models), list(values(catalogue, read_table(models, Catalogue), models.name))


def with_options(config: NeuronConfig, where: str) -> NeuronConfig:
    """
    Return *config* with every option of the harnesses it runs and the sources there are.

    Raises:
        ConfigError: A table has what its plugin does not take.
    """
    plugins, only = Plugins(config.plugins), config.harnesses
    harnesses = [each for each in plugins.offers("harness") if only is None or each.name in only]
    return attrs.evolve(
        config,
        harness=_options(harnesses, config.harness, f"{where}: harness"),
        sources=_options(plugins.offers("source"), config.sources, f"{where}: sources"),
    )


def _options(
    offers: Iterable[Offer[Any]], tables: Mapping[str, Mapping[str, Any]], at: str
) -> dict[str, Any]:
    """Return *tables*, with all options of *offers*; what nobody here offers is as it was said."""
    found: dict[str, Any] = dict(tables)
    for offer in offers:
        if (options := offer.read(tables.get(offer.name), f"{at}.{offer.name}")) is not None:
            found[offer.name] = options
    return found
