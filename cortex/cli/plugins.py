"""``cortex plugins``: what is loaded, what it offers, and what failed and why."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cortex.config.schema import PluginSettings
    from cortex.plugins import Plugins
EXAMPLES = """\
examples:
  cortex plugins
  cortex plugins --config cortex.toml --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="a cortex.toml, for its [plugins] section (default: ./cortex.toml if there is one)",
    )
    parser.add_argument("--json", action="store_true", help="print the same as JSON")


def run(args: argparse.Namespace) -> int:
    """Show the plugins; those that failed are part of the answer."""
    import attrs

    from cortex.config.load import default_file, load_gateway
    from cortex.plugins import Plugins

    logging.getLogger("cortex.plugins").addHandler(logging.NullHandler())  # we say it all here
    settings = load_gateway(args.config or default_file("cortex.toml"))[0].plugins
    # What is required and broken is what this command is there to explain.
    plugins = Plugins(attrs.evolve(settings, require=()))
    found = describe(plugins, settings)
    if args.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    from cortex.cli.console import console

    console().print(_show(found))
    return 0


def describe(plugins: Plugins, settings: PluginSettings) -> dict[str, Any]:
    """Return plugins with their offers and hooks, failures, and what settings leave out."""
    from cortex.plugins import KINDS

    offers = [offer for kind in KINDS for offer in plugins.offers(kind)]
    registering = set(KINDS.values())
    loaded: list[dict[str, Any]] = []
    for name in plugins.loaded():
        callers = plugins.manager.get_hookcallers(plugins.manager.get_plugin(name)) or []
        own = [offer for offer in offers if offer.plugin == name]
        loaded.append(
            {
                "name": name,
                "distribution": plugins.distribution(name),
                "offers": [
                    {"kind": offer.kind, "name": offer.name, "summary": offer.summary}
                    for offer in own
                ],
                "hooks": sorted(c.name for c in callers if c.name not in registering),
            }
        )
    failures: list[dict[str, Any]] = [
        {"name": f.plugin, "distribution": f.distribution, "cause": f.cause}
        for f in plugins.failures
    ]
    known = {plugin["name"] for plugin in (*loaded, *failures)}
    return {
        "plugins": loaded,
        "failures": failures,
        "blocked": list(settings.block),
        "only": None if settings.only is None else sorted(settings.only),
        "missing": [name for name in settings.require if name not in known],
    }


def _show(found: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    names = [len(offer["name"]) for plugin in found["plugins"] for offer in plugin["offers"]]
    parts: list[RenderableType] = []
    for plugin in found["plugins"]:
        name = Text(plugin["name"], "bold")
        if plugin["distribution"] != "cortex-fleet":
            name += Text(f" ({plugin['distribution']})", "not bold")
        parts += [name, _offers(plugin, max(names, default=1))]
    for failure in found["failures"]:
        who = f"{failure['name']} ({failure['distribution']})"
        parts.append(Text.assemble((f"failed: {who}: ", "red"), failure["cause"]))
    parts += [Text(f"missing: {name} is required and not installed") for name in found["missing"]]
    if found["blocked"]:
        parts.append(Text(f"blocked by [plugins] block: {', '.join(found['blocked'])}", "dim"))
    if found["only"] is not None:
        named = ", ".join(found["only"]) or "none"
        parts.append(Text(f"third-party plugins allowed to load: {named}", "dim"))
    return Group(*parts)


def _offers(plugin: dict[str, Any], name_columns: int) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from cortex.plugins import KINDS

    kind_columns = max(map(len, KINDS)) + 3
    rows = Table.grid(padding=(0, 1))
    rows.add_column(no_wrap=True, width=kind_columns, style="dim")
    rows.add_column(no_wrap=True, width=name_columns, style="green")
    rows.add_column()
    for offer in plugin["offers"]:
        rows.add_row(f"   {offer['kind']}", Text(offer["name"]), Text(offer["summary"]))
    hooks = [
        Text.assemble(("   hook".ljust(kind_columns + 1), "dim"), hook) for hook in plugin["hooks"]
    ]
    return Group(*([rows] if rows.row_count else []), *hooks)
