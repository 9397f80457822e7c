"""``cortex config``: check the files of a gateway or a neuron, or show what is in force."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """\
examples:
  cortex config check                        the files of this folder
  cortex config check /etc/cortex/*.toml     these, each as what it looks like
  cortex config show neuron.toml --json      every value, and who said it

Exit codes: 0 nothing is wrong, 2 something is.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    actions = parser.add_subparsers(metavar="action", dest="action", required=True, title="actions")
    for name, summary in (
        ("check", "say everything that is wrong with the files, where, and what to do"),
        ("show", "show every value in force and where it comes from; secrets are hidden"),
    ):
        action = actions.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        action.add_argument(
            "files",
            metavar="FILE",
            nargs="*",
            type=Path,
            help="a cortex.toml, which brings its models.toml, or a neuron.toml "
            "(default: those of this folder)",
        )
        action.add_argument(
            "--role",
            choices=["gateway", "neuron"],
            help="take the files as those of this program; without a file, show its defaults "
            "(default: what a file looks like)",
        )
        action.add_argument("--json", action="store_true", help="print the same as JSON")


def run(args: argparse.Namespace) -> int:
    """Check or show."""
    from cortex.cli.config import check, show
    from cortex.cli.config.files import found

    subjects = found(args.files, args.role)
    return check.run(subjects, args) if args.action == "check" else show.run(subjects, args)
