"""``cortex status``: nodes, devices, models and loads, once or again and again."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

from cortex.cli import client
from cortex.errors import CortexError

if TYPE_CHECKING:
    from rich.console import RenderableType

FLEET = "/api/v1/fleet"
EXAMPLES = """\
examples:
  cortex status
  cortex status --watch 5
  cortex status --json --gateway http://gateway:31313
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    client.add_arguments(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print what the gateway says, as JSON")
    how.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        const=2.0,
        type=_interval,
        help="show it again every SECONDS (default: 2) until Ctrl-C",
    )


def run(args: argparse.Namespace) -> int:
    """Show the fleet."""
    gateway = client.Gateway.of(args)
    if args.json:
        print(json.dumps(gateway.get_as(dict, FLEET), indent=2, ensure_ascii=False))
        return 0
    from cortex.cli.console import console

    out = console()
    picture = _picture(gateway)
    if args.watch is None:
        out.print(picture)
        return 0
    from rich.live import Live

    try:
        with Live(picture, console=out, auto_refresh=False) as live:
            while True:
                time.sleep(args.watch)
                live.update(_picture_or_problem(gateway), refresh=True)
    except KeyboardInterrupt:
        return 0


def _picture(gateway: client.Gateway) -> RenderableType:
    from cortex.cli.overview import overview
    from cortex.fleet.node import Fleet

    return overview(gateway.get_as(Fleet, FLEET), gateway.url)


def _picture_or_problem(gateway: client.Gateway) -> RenderableType:
    from rich.text import Text

    try:
        return _picture(gateway)
    except CortexError as error:
        return Text(str(error), "red")


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:  # noqa: PLR2004 - said in the message
        raise argparse.ArgumentTypeError(f"expected 0.1 to 3600 seconds, got {text!r}")
    return seconds
