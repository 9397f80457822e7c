"""
``cortex completion``: what a shell needs to complete our commands; and the answers it asks for.

The script asks the program itself at each Tab, so that what is installed is what is completed:
commands of plugins, and the names of the gateway's models and nodes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from cortex.cli import client

SHELLS = ("bash", "zsh", "fish")
WITHIN_S = 3.0  # whoever presses Tab waits for it; where nobody listens, not at all
EXAMPLES = """\
examples:
  cortex completion bash \\\n    > ~/.local/share/bash-completion/completions/cortex
  cortex completion zsh > "${fpath[1]}/_cortex"
  cortex completion fish > ~/.config/fish/completions/cortex.fish
  source <(cortex completion bash)         for this shell alone

Exit codes: 0 done, 2 bad usage.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    parser.add_argument(
        "--name", default="cortex", help="what the program is called there (default: cortex)"
    )
    parser.add_argument("--json", action="store_true", help="print one object: shell, script")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    from argcomplete.shell_integration import shellcode

    script = shellcode([args.name], shell=args.shell)
    if args.json:
        return client.print_json({"shell": args.shell, "script": script})
    print(script)
    return 0


def answer(parser: argparse.ArgumentParser) -> None:
    """Tell the shell that asks what can stand where its cursor is; does not return."""
    import argcomplete

    for action in _actions(parser):
        action.completer = _completer(action)  # type: ignore[attr-defined] # where argcomplete looks
    argcomplete.autocomplete(parser, always_complete_options="long")


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield what a parser and those below it take."""
    for action in parser._actions:  # noqa: SLF001 - argparse tells it nowhere else
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for below in dict.fromkeys(action.choices.values()):
                yield from _actions(below)
        elif action.choices is None:
            yield action


def _completer(action: argparse.Action) -> Any:
    """Return what completes an argument, by what it is called in the help."""
    from argcomplete.completers import FilesCompleter

    if action.metavar == "MODEL" or action.dest == "model":
        return _models
    if action.metavar == "NODE":
        return _nodes
    if action.metavar in ("FILE", "-- ARG"):
        return FilesCompleter()
    return _nothing


def _nothing(**_: object) -> list[str]:
    return []  # where argcomplete would list files


def _models(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    if parsed_args.command == "cache":
        from cortex.cli.weights.folders import Folders
        from cortex.cli.weights.kept import kept

        return [each.model for each in kept(Folders.of(None))]
    return [row["id"] for row in _asked(parsed_args, "/v1/models").get("data", ())]


def _nodes(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    return [node["name"] for node in _asked(parsed_args, "/api/v1/fleet").get("nodes", ())]


def _asked(args: argparse.Namespace, path: str) -> dict[str, Any]:
    """Return what the gateway says, or nothing: no error belongs between two words."""
    from cortex.errors import CortexError

    named = argparse.Namespace(
        gateway=getattr(args, "gateway", None), key=getattr(args, "key", None)
    )
    try:
        return client.Gateway.of(named).get_as(dict[str, Any], path, timeout_s=WITHIN_S)
    except CortexError:
        return {}
