"""``cortex models``: what can be asked for; load, unload, pin, explain."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from cortex.cli import client

UNLOAD_S = 300.0
WHERE = {"load": "the gateway chooses", "unpin": "wherever it was pinned by hand"}
EXAMPLES = """\
examples:
  cortex models
  cortex models load Qwen/Qwen3-8B --node beast
  cortex models explain Qwen/Qwen3-8B
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    client.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print what the gateway says, as JSON")
    actions = parser.add_subparsers(metavar="action", dest="action", title="actions")
    for name, summary in (
        ("load", "load a model now, and wait until it can answer"),
        ("unload", "unload a model; the catalogue keeps it"),
        ("pin", "never evict a model from a node, and load it nowhere else"),
        ("unpin", "undo that"),
        ("explain", "say where a request for a model would go now, and why"),
    ):
        action = client.add_action(actions, name, summary)
        action.add_argument("model", metavar="MODEL", help="an id or alias `cortex models` lists")
        if name == "explain":
            continue
        where = WHERE.get(name, "every node that has it")
        action.add_argument("--node", metavar="NODE", help=f"a node's name (default: {where})")
        if name == "unload":
            action.add_argument(
                "--force", action="store_true", help="even if that cuts off requests in flight"
            )


def run(args: argparse.Namespace) -> int:
    """List, or do the action."""
    gateway = client.Gateway.of(args)
    if args.action == "load":
        return _load(gateway, args)
    if args.action == "unload":
        return _unload(gateway, args)
    if args.action in ("pin", "unpin"):
        return _pin(gateway, args)
    if args.action == "explain":
        return _explain(gateway, args)
    if args.json:
        return client.print_json(gateway.get_as(dict, "/v1/models"))
    from cortex.cli import catalogue
    from cortex.cli.console import console

    console().print(catalogue.show(catalogue.models(gateway)))
    return 0


def _load(gateway: client.Gateway, args: argparse.Namespace) -> int:
    from cortex.cli.loads import load

    start = time.monotonic()
    try:
        answer = load(gateway, args.model, args.node)
    except KeyboardInterrupt:
        print("not waiting any longer; see how it goes with: cortex status", file=sys.stderr)
        raise
    return _done(args, answer, f" in {time.monotonic() - start:.1f} s")


def _unload(gateway: client.Gateway, args: argparse.Namespace) -> int:
    from urllib.parse import quote

    body = {"node": args.node} if args.node else {}
    if args.force:
        body["force"] = True
    path = f"/api/v1/models/{quote(args.model, safe='')}/unload"
    return _done(args, gateway.post_as(dict, path, body, timeout_s=UNLOAD_S))


def _pin(gateway: client.Gateway, args: argparse.Namespace) -> int:
    from urllib.parse import quote

    body = {"node": args.node} if args.node else {}
    path = f"/api/v1/models/{quote(args.model, safe='')}/{args.action}"
    answer = gateway.post_as(dict, path, body)
    if args.json:
        return client.print_json(answer)
    print(f"{answer['model_id']}: pinned on {', '.join(answer['pinned_on']) or 'no node'}")
    return 0


def _explain(gateway: client.Gateway, args: argparse.Namespace) -> int:
    from urllib.parse import quote

    path = f"/api/v1/explain?model={quote(args.model, safe='')}"
    if args.json:
        return client.print_json(gateway.get_as(dict, path))
    from cortex.cli.console import console
    from cortex.cli.explanation import show
    from cortex.fleet.node import Explanation

    console().print(show(gateway.get_as(Explanation, path)))
    return 0


def _done(args: argparse.Namespace, answer: dict[str, Any], took: str = "") -> int:
    if args.json:
        return client.print_json(answer)
    model = answer.get("model_id", args.model)
    where = f" on {answer['node']}" if answer.get("node") else ""
    print(f"{answer.get('status', 'done')}: {model}{where}{took}")
    return 0
