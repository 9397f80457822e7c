"""``cortex cache``: the weights on this host, what they take, and how they go."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """\
examples:
  cortex cache list
  cortex cache prune --older-than 30d --dry-run
  cortex cache prune Qwen/Qwen3-8B --yes

What a neuron of this host has loaded, or is fetching, is never deleted.
Exit codes: 0 done, 1 not, or not all of it, 2 bad usage.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    actions = parser.add_subparsers(metavar="action", dest="action", required=True, title="actions")
    for name, summary in (
        ("list", "list downloaded weights: size, last use, and which are in use"),
        ("prune", "delete downloaded weights that are not in use; asks first"),
    ):
        action = actions.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        action.add_argument(
            "--config",
            metavar="FILE",
            type=Path,
            help="this host's neuron.toml, for where its [sources] keep weights "
            "(default: ./neuron.toml if there is one)",
        )
        if name == "prune":
            _add_prune(action)
        action.add_argument("--json", action="store_true", help="print the same as JSON")


def _add_prune(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "models",
        metavar="MODEL",
        nargs="*",
        help="names `cortex cache list` shows (default: all that are not in use)",
    )
    action.add_argument(
        "--older-than",
        metavar="AGE",
        help="only what nobody has used for so long: 30d, 12h, 2w",
    )
    action.add_argument("--dry-run", action="store_true", help="say what would go, delete nothing")
    action.add_argument("--yes", action="store_true", help="do not ask")


def run(args: argparse.Namespace) -> int:
    """List or prune."""
    from cortex.cli.weights import pruning, showing
    from cortex.cli.weights.folders import Folders
    from cortex.cli.weights.kept import kept
    from cortex.config.load import default_file, load_neuron

    path = args.config or default_file("neuron.toml")
    found = kept(Folders.of(load_neuron(path) if path else None))
    return showing.show(found, args) if args.action == "list" else pruning.prune(found, args)
