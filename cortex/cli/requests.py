"""``cortex requests``: what is under way and what was lately over; cancel one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cortex.cli import client
from cortex.errors import CortexError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cortex.fleet.node import RequestState

REQUESTS = "/api/v1/requests"
RIGHT = frozenset({"AGE", "TTFT", "TOKENS", "STATUS"})
WRAP = frozenset({"ID", "MODEL"})
ID_COLUMNS = 9  # eight, and that there are more
EXAMPLES = """\
examples:
  cortex requests
  cortex requests cancel 7f3a9c
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    client.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print what the gateway says, as JSON")
    actions = parser.add_subparsers(metavar="action", dest="action", title="actions")
    action = client.add_action(actions, "cancel", "cancel a request, wherever it is")
    action.add_argument("id", metavar="ID", help="an id `cortex requests` lists, or how it begins")


def run(args: argparse.Namespace) -> int:
    """List or cancel."""
    gateway = client.Gateway.of(args)
    if args.action == "cancel":
        return _cancel(gateway, args)
    if args.json:
        return client.print_json(gateway.get_as(dict, REQUESTS))
    import msgspec

    from cortex.cli.console import console
    from cortex.fleet.node import RequestState

    rows = gateway.get_as(dict, REQUESTS)["requests"]
    console().print(_table(msgspec.convert(rows, list[RequestState])))
    return 0


def _cancel(gateway: client.Gateway, args: argparse.Namespace) -> int:
    from urllib.parse import quote

    rows = gateway.get_as(dict, REQUESTS)["requests"]
    begun = {
        row["id"] for row in rows if row["id"].startswith(args.id) and row.get("duration_s") is None
    }
    if len(begun) > 1 and args.id not in begun:
        raise CortexError(
            f"{len(begun)} requests under way have an id that begins with {args.id!r}",
            hint="give more of it; `cortex requests --json` has it whole",
        )
    chosen = begun.pop() if len(begun) == 1 else args.id
    answer = gateway.delete_as(dict, f"{REQUESTS}/{quote(chosen, safe='')}")
    if args.json:
        return client.print_json(answer)
    print(f"cancelled: {answer['id']}")
    return 0


def _table(rows: Sequence[RequestState]) -> RenderableType:
    from rich.text import Text

    from cortex.cli.console import duration, state, table

    heads = ("ID", "STATE", "WHO", "MODEL", "NODE", "AGE", "TTFT", "TOKENS", "STATUS")
    shown = table(*heads, right=RIGHT, wrap=WRAP)
    shown.columns[0].min_width = ID_COLUMNS
    for row in rows:
        shown.add_row(
            Text(row.id, no_wrap=True, overflow="ellipsis"),
            state(row.state),
            row.principal,
            row.model,
            row.node,
            duration(row.age_s),
            "" if row.ttft_s is None else f"{row.ttft_s:.2f}s",
            str(row.completion_tokens),
            str(row.status or ""),
        )
    return shown
