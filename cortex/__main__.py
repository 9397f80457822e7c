"""The command line: parse, import the one command asked for, run it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from errno import ENOSPC
from importlib import import_module

COMMANDS = {
    "serve": ("cortex.gateway.command", "run the gateway"),
    "neuron": ("cortex.neuron.command", "run the daemon of a GPU host"),
    "status": ("cortex.cli.status", "show nodes, devices and models"),
    "top": ("cortex.cli.top", "watch the fleet, live, and act on it"),
    "models": ("cortex.cli.models", "list, load, unload and pin models"),
    "nodes": ("cortex.cli.nodes", "list nodes, drain one, use it again"),
    "requests": ("cortex.cli.requests", "list requests, cancel one"),
    "logs": ("cortex.cli.logs", "show and follow the logs of gateway and nodes"),
    "reload": ("cortex.cli.reload", "have the gateway read its configuration again"),
    "chat": ("cortex.cli.chat", "talk to a model in the terminal"),
    "launch": ("cortex.cli.launch", "start a coding agent that talks to the gateway"),
    "bench": ("cortex.cli.bench", "measure an endpoint under load"),
    "keys": ("cortex.cli.keys", "make, list and revoke API keys, and show what they used"),
    "pull": ("cortex.cli.pull", "download a model's weights to this host"),
    "cache": ("cortex.cli.cache", "list downloaded weights, delete those not in use"),
    "completion": ("cortex.cli.completion", "have bash, zsh or fish complete our commands"),
    "plugins": ("cortex.cli.plugins", "show plugins, what they offer and what failed"),
    "config": ("cortex.cli.config", "check the configuration, or show what is in force"),
    "doctor": ("cortex.cli.doctor", "say what is wrong here and in the fleet, and what to do"),
}
BAD_USAGE = 2


def main(argv: list[str] | None = None) -> int:
    """
    Run the command line.

    Returns:
        0 done, 1 failed, 2 bad usage or configuration, 130 interrupted.
    """
    completing = "_ARGCOMPLETE" in os.environ
    if completing:
        argv = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])].split()[1:]
    argv = sys.argv[1:] if argv is None else argv
    if problem := wrong_python():
        print(problem, file=sys.stderr)
        return BAD_USAGE
    parser = argparse.ArgumentParser(
        prog="cortex", description="One reliable LLM endpoint out of a handful of GPU boxes."
    )
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    commands = parser.add_subparsers(metavar="command", dest="command")
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name in argv[:1]:
            chosen = import_module(module)
            command.epilog = getattr(chosen, "EXAMPLES", None)
            command.formatter_class = argparse.RawDescriptionHelpFormatter
            chosen.add_arguments(command)
            command.set_defaults(run=chosen.run)
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        asked = None if completing else argv[0]
        failed = _guarded(argv[0], lambda: _ask_plugins(commands, asked))
        if failed:
            return failed
    if completing:
        import_module("cortex.cli.completion").answer(parser)
    args = _parsed(parser, commands, argv)
    if args.version:
        from cortex import __version__

        print(f"cortex {__version__} (Python {sys.version.split()[0]})")
        return 0
    if args.command is None:
        parser.print_help()
        return 0
    return _guarded(args.command, lambda: int(args.run(args)))


def _parsed(
    parser: argparse.ArgumentParser,
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    argv: list[str],
) -> argparse.Namespace:
    """Parse; what nobody knows is told with the usage of the command it was given to."""
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        told = commands.choices.get(args.command, parser)
        told.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def wrong_python() -> str | None:
    """
    Say what is wrong with this interpreter, if anything.

    A zipapp carries compiled modules of one Python version; under another it would run without
    them, or not.
    """
    try:
        from cortex._built_for import PYTHON  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return None
    if sys.version_info[:2] == PYTHON:
        return None
    want = ".".join(map(str, PYTHON))
    have = f"{sys.executable} is {sys.version.split()[0]}"
    return f"cortex: this file was built for Python {want}, and {have}: run it with python{want}"


def _ask_plugins(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], asked: str | None
) -> int:
    """Add the commands of plugins; one that is *asked* for and nobody has is bad usage."""
    from cortex.config.load import default_file, load_gateway
    from cortex.plugins import Plugins
    from cortex.registry import did_you_mean

    settings = load_gateway(default_file("cortex.toml"))[0].plugins
    Plugins(settings).manager.hook.cortex_register_commands(commands=commands)
    if asked is None or asked in commands.choices:
        return 0
    hint = did_you_mean(asked, commands.choices)
    print(f"cortex: no command is called {asked!r} ({hint})", file=sys.stderr)
    return BAD_USAGE


def _guarded(command: str, work: Callable[[], int]) -> int:
    """Run *work*; what we can explain is a sentence and an exit status."""
    from cortex.errors import ConfigError, CortexError

    try:
        return work()
    except ConfigError as error:
        for mistake in error.each:
            print(f"cortex {command}: {mistake}", file=sys.stderr)
        return BAD_USAGE
    except CortexError as error:
        print(f"cortex {command}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except OSError as error:
        if error.errno != ENOSPC:
            raise
        where = f": {error.filename}" if error.filename else ""
        print(f"cortex {command}: {error.strerror}{where}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
