"""What a check found, and how it is said."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Literal

import attrs

State = Literal["ok", "warn", "fail", "skip"]
STYLES = {"ok": "green", "warn": "yellow", "fail": "red", "skip": "dim"}
FAILED = 1


@attrs.frozen(kw_only=True)
class Finding:
    """
    One line of the answer.

    Attributes:
        check: What was looked at, in a word.
        do: What to do about it.
    """

    check: str
    state: State
    message: str
    do: str = ""


def show(findings: Iterable[Finding], *, as_json: bool) -> int:
    """Print each as it comes, or all as JSON; return the exit status."""
    failed = False
    if as_json:
        found = list(findings)
        failed = any(finding.state == "fail" for finding in found)
        said = {"ok": not failed, "findings": [attrs.asdict(finding) for finding in found]}
        print(json.dumps(said, indent=2, ensure_ascii=False))
        return FAILED if failed else 0
    from rich.text import Text

    from cortex.cli.console import console

    out = console()
    for finding in findings:
        failed |= finding.state == "fail"
        state = Text(f"{finding.state:<5} ", STYLES[finding.state])
        out.print(state + Text(f"{finding.check}: {finding.message}"))
        if finding.do:
            out.print(Text(f"      {finding.do}", "bold" if finding.state == "fail" else ""))
    return FAILED if failed else 0
