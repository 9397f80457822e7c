"""Starts a client in place of ourselves, or prints how."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from typing import NoReturn

import attrs

from cortex.cli.client import Gateway
from cortex.cli.launch.plans import PLANS, Client, Plan
from cortex.cli.launch.target import Target
from cortex.cli.loads import warm
from cortex.config.load import cache_dir, environment
from cortex.errors import CortexError


def start(gateway: Gateway, args: argparse.Namespace) -> int:
    """
    Become the client; returns only where it is printed instead.

    Raises:
        CortexError: It is not installed, or there is no model for it.
    """
    client = PLANS[args.program]
    target = Target.of(gateway, args.model)
    if not (args.json or args.print_only):
        find(args.program, client)
        if not target.context:  # it is known once the model is loaded
            warm(gateway, target.model)
            target = Target.of(gateway, target.model)
    plan = client.plan(target, cache_dir() / "launch")
    plan = attrs.evolve(plan, command=(*plan.command, *args.arguments))
    if args.json:
        print(json.dumps(described(plan, target), indent=2, ensure_ascii=False))
    elif args.print_only:
        print("\n".join(as_shell(plan)))
    else:
        become(find(args.program, client), plan, target)
    return 0


def become(program: str, plan: Plan, target: Target) -> NoReturn:
    """Write the files of a plan, and run the program in place of ourselves."""
    write(plan)
    room = f"{target.context} tokens" if target.context else "a context that is unknown"
    said = f"{plan.command[0]}: {target.model} at {target.url}, with {room}"
    print(said, file=sys.stderr, flush=True)
    os.execve(program, [program, *plan.command[1:]], environment_of(plan))  # noqa: S606 - as asked


def find(name: str, client: Client) -> str:
    """
    Return where the program is.

    Raises:
        CortexError: Nowhere; says how to get it.
    """
    if program := next(filter(None, map(shutil.which, client.names)), None):
        return program
    raise CortexError(
        f"{name} is not installed: there is no {' or '.join(client.names)} on PATH",
        hint=f"{client.install}; or see with --print how to start it elsewhere",
    )


def write(plan: Plan) -> None:
    """Write the files of a plan; only their owner may read them."""
    for path, text in plan.files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.write_text(text, "utf-8")
        except OSError as error:
            raise CortexError(f"cannot write {path}: {error.strerror}") from None


def environment_of(plan: Plan) -> dict[str, str]:
    """Return the whole environment the client gets."""
    kept = {name: value for name, value in environment().items() if name not in plan.unset}
    return {**plan.defaults, **kept, **plan.env}


def described(plan: Plan, target: Target) -> dict[str, object]:
    """Return what ``--json`` prints."""
    return {
        "model": target.model,
        "command": list(plan.command),
        "env": {**plan.defaults, **plan.env},
        "unset": list(plan.unset),
        "files": {str(path): text for path, text in plan.files.items()},
    }


def as_shell(plan: Plan) -> Iterator[str]:
    """Yield the lines with which a shell does the same."""
    for path, text in plan.files.items():
        yield f"mkdir -p {shlex.quote(str(path.parent))}"
        yield f"cat >{shlex.quote(str(path))} <<'END'\n{text}\nEND"
    for name in plan.unset:
        yield f"unset {name}"
    for name, value in {**plan.defaults, **plan.env}.items():
        yield f"export {name}={shlex.quote(value)}"
    yield shlex.join(plan.command)
