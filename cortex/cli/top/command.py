"""``cortex top``: its options; the dashboard itself is imported when it is to run."""

from __future__ import annotations

import argparse
import gc
import sys

from cortex.cli import client
from cortex.errors import CortexError

EXAMPLES = """\
examples:
  cortex top                          the fleet of $CORTEX_URL; ? shows the keys
  cortex top --gateway http://box:31313 --light
  cortex top --web                    the same at http://127.0.0.1:8000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    client.add_arguments(parser)
    add = parser.add_argument
    add("--light", action="store_true", help="for terminals that are light")
    add("--web", action="store_true", help="serve it to browsers instead")
    add("--host", default="127.0.0.1", help="where to serve it (default: %(default)s)")
    add("--port", type=int, default=8000, help="of --host (default: %(default)s; 0: a free one)")


def run(args: argparse.Namespace) -> int:
    """Show the dashboard until it is left."""
    gateway = client.Gateway.of(args)
    if args.web:
        from cortex.cli.top.browser import serve

        return serve(args)
    from textual.constants import DRIVER

    if DRIVER is None and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise CortexError("this needs a terminal", hint="for a file or a pipe: cortex status")
    from cortex.cli.top.app import TopApp

    gc.freeze()  # what was imported is never garbage, and to look there for it takes 0.1 s
    app = TopApp(gateway, light=args.light)
    app.run()
    return app.return_code or 0
