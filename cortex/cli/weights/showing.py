"""``cortex cache list``."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import attrs
from rich.console import RenderableType

from cortex.cli.console import console, duration, size, state, table
from cortex.cli.weights.kept import Kept

RIGHT = frozenset({"SIZE", "UNUSED FOR"})


def show(found: Sequence[Kept], args: argparse.Namespace) -> int:
    """Print what is kept."""
    if args.json:
        total = sum(each.size_bytes for each in found)
        said = {"models": [described(each) for each in found], "size_bytes": total}
        print(json.dumps(said, indent=2, ensure_ascii=False))
    else:
        console().print(rows(found) if found else "nothing is kept here")
    return 0


def described(each: Kept) -> dict[str, Any]:
    """Return one as ``--json`` has it."""
    said = attrs.asdict(each, filter=lambda field, _: field.name != "locks")
    return {**said, "path": str(each.path)}


def rows(found: Sequence[Kept]) -> RenderableType:
    """Return a table of them, and their sum."""
    now = time.time()
    shown = table(
        "MODEL", "SOURCE", "SIZE", "UNUSED FOR", "USE", right=RIGHT, wrap=frozenset({"MODEL"})
    )
    for each in found:
        part = f", {size(each.partial_bytes)} unfinished" if each.partial_bytes else ""
        age = "" if each.use != "free" else duration(max(0.0, now - each.last_used))
        shown.add_row(each.model, each.source, size(each.size_bytes), age, state(each.use, part))
    shown.add_row("", "", size(sum(each.size_bytes for each in found)), "", "")
    return shown
