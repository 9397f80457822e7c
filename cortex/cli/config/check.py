"""What a gateway or a neuron would refuse at its start, all of it, and what it would regret."""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from cortex import tls
from cortex.cli.config.files import Subject
from cortex.config.load import catalogue_path, load_catalogue, load_gateway, load_neuron, read_table
from cortex.config.mistakes import Mistakes, line_of
from cortex.config.schema import Catalogue, GatewayConfig, NeuronConfig, PluginSettings
from cortex.errors import ConfigError
from cortex.plugins import KINDS, Plugins
from cortex.registry import did_you_mean

BAD_CONFIGURATION = 2
_LINE = re.compile(r"line (\d+), column \d+: ")
_INNER = re.compile(r"(\w+): ")
_KEY = re.compile(r"([A-Za-z_][\w.-]*(?:\[[^\]]*\][\w.-]*)*): ")


@attrs.frozen(kw_only=True)
class Finding:
    """
    One thing to say.

    Attributes:
        state: ``error``, with which nothing starts, or ``warning``.
        file: Where it is; empty if it is in no file.
        do: What to do, where the message does not say so.
    """

    state: str
    file: str
    line: int | None
    key: str
    message: str
    do: str = ""


def run(subjects: Sequence[Subject], args: argparse.Namespace) -> int:
    """Check them all; return the exit status."""
    logging.getLogger("cortex.plugins").addHandler(logging.NullHandler())  # we say it all here
    every = (finding for subject in subjects for finding in check(subject))
    findings = list(dict.fromkeys(every))  # a models.toml may be named beside its cortex.toml
    bad = any(finding.state == "error" for finding in findings)
    files = sorted({str(path) for subject in subjects for path in _files(subject)})
    if args.json:
        said = {"ok": not bad, "files": files, "findings": [attrs.asdict(f) for f in findings]}
        print(json.dumps(said, indent=2, ensure_ascii=False))
    else:
        _print(files, findings)
    return BAD_CONFIGURATION if bad else 0


def check(subject: Subject) -> list[Finding]:
    """Return what there is to say about a file, and about the models.toml it names."""
    wrong, doubtful = Mistakes(), list[ConfigError]()
    if subject.kind == "models":
        assert subject.path is not None  # noqa: S101 - a catalogue is never a default
        with wrong:
            doubtful += doubts(load_catalogue(subject.path), None, subject.name)
    elif subject.kind == "neuron":
        with wrong:
            settings = load_neuron(subject.path)
            found = Plugins(settings.plugins)
            with wrong:
                check_neuron(settings, found, subject.name)
            doubtful += left_out(found, settings.plugins, subject.name)
    else:
        with wrong:
            config, catalogue = load_gateway(subject.path)
            models = config.gateway.models_config.name
            doubtful += doubts(catalogue, config, models)
            found = Plugins(config.plugins)
            with wrong:
                check_gateway(config, catalogue, found, subject.name)
            doubtful += left_out(found, config.plugins, subject.name)
    places = {path.name: path for path in _files(subject)}
    return [
        *(located(error, "error", places) for error in wrong.found),
        *(located(error, "warning", places) for error in doubtful),
    ]


def _files(subject: Subject) -> Iterator[Path]:
    if subject.path is None:
        return
    yield subject.path
    if subject.kind == "gateway":
        with Mistakes():
            models = catalogue_path(read_table(subject.path, GatewayConfig), subject.path.parent)
            if models.exists():
                yield models


def check_gateway(
    config: GatewayConfig, catalogue: Catalogue, plugins: Plugins, where: str
) -> None:
    """
    Check what only plugins and other files can tell of a gateway.

    Raises:
        ConfigError: With every mistake.
    """
    mistakes = Mistakes()
    chosen = [
        ("routing strategy", config.routing.strategy, "routing.strategy"),
        ("eviction policy", config.eviction.strategy, "eviction.strategy"),
        *(("dialect", name, "gateway.dialects") for name in config.gateway.dialects or ()),
        *(("authenticator", name, "auth.use") for name in config.auth.use),
    ]
    for number, upstream in enumerate(config.upstreams):
        at = f"upstreams[{number}].dialects"
        chosen += [("dialect", name, at) for name in upstream.dialects]
    for kind, name, key in chosen:
        with mistakes:
            plugins.choose(kind, name, f"{where}: {key}")
    _check_options(
        plugins, "authenticator", config.auth.options, f"{where}: auth.options", mistakes
    )
    for number, model in enumerate(catalogue.models):
        if model.scheme is not None:
            at = f"{config.gateway.models_config.name}: models[{number}].source"
            with mistakes:
                plugins.choose("source", model.scheme, at)
    with mistakes:
        tls.listener(config.gateway.tls, f"{where}: gateway.tls.")
    for number, node in enumerate(config.neurons):
        with mistakes:
            try:
                tls.toward(node)
            except ConfigError as error:
                said = error.message.removeprefix(f"node {node.name}: ")
                raise ConfigError(f"{where}: neurons[{number}].{said}", hint=error.hint) from None
    mistakes.raise_any()


def check_neuron(config: NeuronConfig, plugins: Plugins, where: str) -> None:
    """
    Check what only plugins and other files can tell of a neuron.

    Raises:
        ConfigError: With every mistake.
    """
    mistakes = Mistakes()
    for name in config.harnesses or ():
        with mistakes:
            plugins.choose("harness", name, f"{where}: harnesses")
    _check_options(plugins, "harness", config.harness, f"{where}: harness", mistakes)
    _check_options(plugins, "source", config.sources, f"{where}: sources", mistakes)
    for number, model in enumerate(config.default_models):
        at = f"{where}: default_models[{number}]"
        with mistakes:
            if model.harness is not None:
                plugins.choose("harness", model.harness, f"{at}.harness")
        with mistakes:
            if model.source is not None:
                plugins.choose("source", model.source.partition(":")[0], f"{at}.source")
    with mistakes:
        tls.listener(config.tls, f"{where}: tls.")
    mistakes.raise_any()


def _check_options(
    plugins: Plugins,
    kind: str,
    tables: Mapping[str, Mapping[str, Any]],
    at: str,
    mistakes: Mistakes,
) -> None:
    for name, table in tables.items():
        with mistakes:
            plugins.choose(kind, name, at).read(table, f"{at}.{name}")


def left_out(plugins: Plugins, settings: PluginSettings, where: str) -> Iterator[ConfigError]:
    """Yield what a program starts without: plugins that cannot be used, folders not there."""
    for directory in settings.directories:
        if not directory.is_dir():
            yield ConfigError(f"{where}: plugins.directories: no folder {directory}")
    for kind in KINDS:
        plugins.offers(kind)
    for failure in plugins.failures:
        yield ConfigError(f"{where}: plugins: {failure}", hint="it is left out; mend or block it")


def doubts(catalogue: Catalogue, config: GatewayConfig | None, where: str) -> Iterator[ConfigError]:
    """Yield what a gateway takes, and what is likely not meant."""
    ids = {model.id: model for model in catalogue.models}
    for alias, target in catalogue.aliases.items():
        if target not in ids:
            yield ConfigError(
                f"{where}: aliases.{alias}: no model of this file is called {target!r}",
                hint=f"it works while a node has it loaded; {did_you_mean(target, ids)}",
            )
    if config is None:
        return
    nodes = {node.name: node for node in config.nodes}
    for number, model in enumerate(catalogue.models):
        for name in model.pinned_on:
            if name not in nodes:
                yield ConfigError(
                    f"{where}: models[{number}].pinned_on: no node is called {name!r}",
                    hint=did_you_mean(name, nodes),
                )


def located(error: ConfigError, state: str, places: Mapping[str, Path]) -> Finding:
    """Return what an error says, with the line of its file."""
    name, colon, said = error.message.partition(": ")
    path = places.get(Path(name).name)
    if not colon or path is None:
        return Finding(
            state=state, file="", line=None, key="", message=error.message, do=error.hint
        )
    line, key = None, ""
    if match := _LINE.match(said):
        line, said = int(match[1]), said[match.end() :]
    elif match := _KEY.match(said):
        key, said, text = match[1], said[match.end() :], path.read_text("utf-8")
        line = line_of(text, key)
        inner = _INNER.match(said)  # of a table read by itself: harness.torch: dtype: ...
        if inner and (below := line_of(text, f"{key}.{inner[1]}")) != line:
            key, said, line = f"{key}.{inner[1]}", said[inner.end() :], below
    return Finding(state=state, file=str(path), line=line, key=key, message=said, do=error.hint)


def _print(files: Iterable[str], findings: Sequence[Finding]) -> None:
    from rich.text import Text

    from cortex.cli.console import console

    out = console()
    for finding in findings:
        place = ":".join(str(part) for part in (finding.file, finding.line) if part)
        where = f"{place}: " if place else ""
        key = f"{finding.key}: " if finding.key else ""
        style = "red" if finding.state == "error" else "yellow"
        out.print(Text.assemble(where, (finding.state, style), f": {key}{finding.message}"))
        if finding.do:
            out.print(f"    {finding.do}")
    if not findings:
        out.print(f"ok: {', '.join(files) or 'all defaults'}")
