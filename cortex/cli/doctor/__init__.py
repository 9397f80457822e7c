"""``cortex doctor``: what is wrong with this host and its fleet, and what to do about it."""

from __future__ import annotations

import argparse
from pathlib import Path

from cortex.cli import client

EXAMPLES = """\
What does not apply here is skipped: without a cortex.toml this host is taken
for no gateway, without a neuron.toml and a GPU for no node.

examples:
  cortex doctor
  cortex doctor --gateway http://gateway:31313 --json
  cortex doctor --config /etc/cortex/cortex.toml

Exit codes: 0 nothing failed, 1 something did, 2 bad usage.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    client.add_arguments(parser)
    for option, name in (("--config", "cortex.toml"), ("--neuron-config", "neuron.toml")):
        parser.add_argument(
            option,
            metavar="FILE",
            type=Path,
            help=f"this host's {name} (default: ./{name} if there is one)",
        )
    parser.add_argument("--json", action="store_true", help="print the same as JSON")


def run(args: argparse.Namespace) -> int:
    """Look at everything, and say it."""
    from cortex.cli.doctor.findings import show
    from cortex.cli.doctor.host import Host
    from cortex.cli.doctor.rounds import rounds

    return show(rounds(Host.of(args), client.Gateway.of(args)), as_json=args.json)
