"""``cortex launch``: start a coding agent or an editor that talks to the gateway."""

from __future__ import annotations

import argparse

from cortex.cli import client

CLIENTS = {
    "claude": "Claude Code",
    "codex": "Codex",
    "opencode": "opencode",
    "aider": "aider",
    "zed": "Zed",
}
OF_A_PROGRAM = """\
examples:
  cortex launch {name}
  cortex launch {name} --model Qwen/Qwen3-8B -- --help
  cortex launch {name} --print

What stands behind -- goes to the program.  No file of yours is changed.
Exit codes: the program's own; 1 if it is not started, 2 for bad usage.
"""
EXAMPLES = OF_A_PROGRAM.format(name="claude")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    programs = parser.add_subparsers(
        metavar="program", dest="program", required=True, title="programs"
    )
    for name, title in CLIENTS.items():
        summary = f"start {title} with this gateway and a model of its"
        program = programs.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=OF_A_PROGRAM.format(name=name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        client.add_arguments(program)
        program.add_argument(
            "-m",
            "--model",
            help="an id or alias `cortex models` lists (default: one that is loaded and uses "
            "tools, with the longest context)",
        )
        program.add_argument(
            "--print",
            action="store_true",
            dest="print_only",
            help="start nothing; print what would be set, the key too, as a shell takes it",
        )
        program.add_argument("--json", action="store_true", help="the same, as one JSON object")
        program.add_argument(
            "arguments", metavar="-- ARG", nargs="*", help=f"what {title} is given besides"
        )


def run(args: argparse.Namespace) -> int:
    """Start it, or print how."""
    from cortex.cli.launch.starting import start

    return start(client.Gateway.of(args), args)
