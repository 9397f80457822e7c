"""``cortex cache prune``: what goes, and that nothing goes which somebody uses."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import attrs

from cortex.cli.console import console, size
from cortex.cli.weights.kept import PRUNED, Kept, folders_in
from cortex.cli.weights.showing import described, rows
from cortex.errors import CortexError
from cortex.registry import did_you_mean
from cortex.sources.hold import Hold

_AGE = re.compile(r"(\d+)([smhdw])")
UNITS_S = (("s", 1), ("m", 60), ("h", 3600), ("d", 86400), ("w", 604800))
USES = {
    "loaded": "a neuron of this host has it loaded",
    "downloading": "it is being downloaded",
    "open": "a program has files of it open",
}


@attrs.frozen(kw_only=True)
class Choice:
    """What is to go, and what was asked for and stays, each with why."""

    going: tuple[Kept, ...]
    staying: tuple[tuple[Kept, str], ...]


def prune(found: Sequence[Kept], args: argparse.Namespace) -> int:
    """
    Delete what the command line asks for; return 1 if some of what it names stays.

    Raises:
        CortexError: It names what is not there, or nobody can be asked.
    """
    age_s = None if args.older_than is None else seconds(args.older_than)
    choice = choose(found, args.models, age_s, time.time())
    gone: list[Kept] = []
    staying = list(choice.staying)
    if not args.dry_run and choice.going and _is_wanted(choice, args):
        for each in choice.going:
            if why := delete(each):
                staying.append((each, why))
            else:
                gone.append(each)
    _report(choice, gone, staying, args)
    return 1 if args.models and staying else 0


def choose(found: Sequence[Kept], names: Sequence[str], age_s: float | None, now: float) -> Choice:
    """
    Return what is to go.

    Args:
        found: What is kept.
        names: Only these; none is all.
        age_s: Only what nobody has used for so long.
        now: Unix seconds.

    Raises:
        CortexError: There is no such name.
    """
    known = {each.model: each for each in found}
    for name in names:
        if name not in known:
            raise CortexError(f"nothing is kept of {name!r}", hint=did_you_mean(name, known))
    going, staying = [], []
    for each in found:
        if names and each.model not in names:
            continue
        if each.use != "free":
            staying.append((each, USES[each.use]))
        elif age_s is None or now - each.last_used >= age_s:
            going.append(each)
        elif names:
            staying.append((each, "it was used since"))
    return Choice(going=tuple(going), staying=tuple(staying))


def seconds(text: str) -> float:
    """
    Return an age in seconds.

    Raises:
        CortexError: It is none.
    """
    match = _AGE.fullmatch(text)
    if match is None:
        raise CortexError(f"--older-than: expected an age like 30d, 12h or 2w, got {text!r}")
    return float(match[1]) * dict(UNITS_S)[match[2]]


def delete(each: Kept) -> str:
    """
    Delete one; return why it stays, or nothing.

    It gets another name first, at once: nobody ever sees the half of it.
    """
    aside = each.path.with_name(f"{PRUNED}{os.getpid()}-{each.path.name}")
    try:
        with _alone(each):
            each.path.rename(aside)
            shutil.rmtree(aside)
        if each.locks is not None:
            shutil.rmtree(each.locks, ignore_errors=True)
    except BlockingIOError:
        return "somebody has begun to use it"
    except OSError as error:
        return f"it cannot be deleted: {error.strerror or error}"
    return ""


@contextmanager
def _alone(each: Kept) -> Iterator[None]:
    """Keep neurons and downloads from it."""
    with ExitStack() as stack:
        if each.locks is not None and each.locks.is_dir():
            for lock in each.locks.glob("*.lock"):
                file = stack.enter_context(lock.open("a"))
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        for folder in folders_in(each.path):
            stack.enter_context(Hold(folder, alone=True))
        yield


def _is_wanted(choice: Choice, args: argparse.Namespace) -> bool:
    """Ask, unless that was answered."""
    if args.yes:
        return True
    if args.json or not sys.stdin.isatty():
        raise CortexError("nobody is there to ask", hint="say --yes, or look with --dry-run")
    out = console(stderr=True)
    out.print(rows(choice.going))
    total = size(sum(each.size_bytes for each in choice.going))
    print(f"Delete {len(choice.going)}, {total}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _report(
    choice: Choice,
    gone: Sequence[Kept],
    staying: Sequence[tuple[Kept, str]],
    args: argparse.Namespace,
) -> None:
    shown = choice.going if args.dry_run else gone
    freed = sum(each.size_bytes for each in shown)
    if args.json:
        said = {
            "dry_run": args.dry_run,
            "deleted": [described(each) for each in shown],
            "kept": [{"model": each.model, "why": why} for each, why in staying],
            "freed_bytes": freed,
        }
        print(json.dumps(said, indent=2, ensure_ascii=False))
        return
    for each, why in staying:
        print(f"kept: {each.model}: {why}", file=sys.stderr)
    word = "would go" if args.dry_run else "deleted"
    for each in shown:
        print(f"{word}: {each.model}  {size(each.size_bytes)}")
    if args.dry_run:
        print(f"{size(freed)} would be free" if shown else "nothing would go")
    else:
        print(f"{size(freed)} freed" if shown else "nothing was deleted")
