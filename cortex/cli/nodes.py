"""``cortex nodes``: the nodes of the fleet; take one out of use and back."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from cortex.cli import client

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cortex.fleet.node import Fleet

FLEET = "/api/v1/fleet"
EXAMPLES = """\
examples:
  cortex nodes
  cortex nodes drain beast
  cortex nodes resume beast
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    client.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print what the gateway says, as JSON")
    actions = parser.add_subparsers(metavar="action", dest="action", title="actions")
    for name, summary in (
        ("drain", "send nothing new to a node; what runs there ends by itself"),
        ("resume", "use a drained node again"),
    ):
        action = client.add_action(actions, name, summary)
        action.add_argument("node", metavar="NODE", help="a name `cortex nodes` lists")


def run(args: argparse.Namespace) -> int:
    """List, drain or resume."""
    gateway = client.Gateway.of(args)
    if args.action is not None:
        return _tell(gateway, args)
    if args.json:
        return client.print_json({"nodes": gateway.get_as(dict, FLEET)["nodes"]})
    from cortex.cli.console import console
    from cortex.fleet.node import Fleet

    console().print(_table(gateway.get_as(Fleet, FLEET)))
    return 0


def _tell(gateway: client.Gateway, args: argparse.Namespace) -> int:
    from urllib.parse import quote

    path = f"/api/v1/nodes/{quote(args.node, safe='')}/{args.action}"
    answer = gateway.post_as(dict, path, {})
    if args.json:
        return client.print_json(answer)
    if answer.get("drained"):
        print(f"drained: {answer['node']}, {answer['in_flight']} requests under way there")
    else:
        print(f"in use: {answer['node']}")
    return 0


def _table(fleet: Fleet) -> RenderableType:
    from cortex.cli.console import state, table

    shown = table("NODE", "STATE", "REQUESTS", "MODELS", right=frozenset({"REQUESTS"}), wrap=WRAP)
    for node in fleet.nodes:
        word = "drained" if node.drained else "ok" if node.healthy else "unreachable"
        models = ", ".join(model.id for model in node.models if model.routable)
        shown.add_row(node.name, state(word), str(node.in_flight), models)
    return shown


WRAP = frozenset({"MODELS"})
