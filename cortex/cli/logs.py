"""``cortex logs``: what gateway and nodes logged lately, and what they log now."""

from __future__ import annotations

import argparse

from cortex.cli import client

LEVELS = ("debug", "info", "warning", "error")
EXAMPLES = """\
examples:
  cortex logs                         of the gateway and all its nodes
  cortex logs -f beast                of a node, until Ctrl-C
  cortex logs -f Qwen/Qwen3-8B        what any of them says of a model
  cortex logs gateway --level warning --json

Programs keep their last 2,000 lines; `journalctl -u 'cortex-*'` may have more.
Exit codes: 0 done, 1 nobody could be asked, 2 bad usage, 130 Ctrl-C.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    client.add_arguments(parser)
    parser.add_argument(
        "about",
        metavar="NODE|MODEL",
        nargs="?",
        help="a node's name, `gateway`, or an id or alias of a model (default: everybody)",
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    parser.add_argument(
        "--level", choices=LEVELS, default="debug", help="the least (default: all there is)"
    )
    parser.add_argument(
        "-n", "--lines", metavar="N", type=int, default=200, help="how many, of each (default: 200)"
    )
    parser.add_argument("--json", action="store_true", help="print an object a line")


def run(args: argparse.Namespace) -> int:
    """Print lines, and follow."""
    from cortex.cli.log_streams import Printer, follow, recent, sources

    gateway = client.Gateway.of(args)
    asked = sources(gateway, args)
    printer = Printer(as_json=args.json)
    failed = recent(gateway, asked, printer)
    if args.follow:
        return follow(gateway, asked, printer)
    return 1 if failed == len(asked) else 0
