"""
Runs one server, and ends it, and whatever it started, when the neuron lets go of it or dies.

A program of its own, of the standard library alone.  The first line of its standard input is JSON:
``command``, ``env`` (variables to add) and ``stop_s``.  When that input ends, or on SIGTERM, the
server gets SIGTERM, and SIGKILL after ``stop_s``.  Orphans of the server become the guard's
children, so that none outlives it, whatever session it is in.  Exits as the server did.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
NOT_FOUND = 127  # as a shell says it


def main() -> int:
    """Run the server; return its exit code, 128 and the signal if one ended it."""
    job = json.loads(read_line())
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which a server would inherit
    told = signal.SIGTERM.to_bytes() + signal.SIGINT.to_bytes()
    settings = [f"{name}={value}" for name, value in job["env"].items()]
    child = subprocess.Popen(  # noqa: S603 - it is what the configuration names
        ["env", *settings, *job["command"]],  # noqa: S607 - wherever it is
        stdin=subprocess.DEVNULL,
        preexec_fn=_dies_with(prctl, os.getpid()),  # noqa: PLW1509 - there are no threads
    )
    code = None
    while code is None:
        ready, _, _ = select.select([0, woken], [], [])
        code = reaped(child.pid)
        if 0 in ready or any(byte in told for byte in os.read(woken, 4096)):
            break
    if code is None:
        child.send_signal(signal.SIGTERM)
        code = waited(child.pid, woken, time.monotonic() + job["stop_s"])
    rest = end_children(child.pid)
    return next(found for found in (code, rest, NOT_FOUND) if found is not None)


def read_line() -> bytes:
    """Read the first line of standard input, and nothing behind it."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line


def _dies_with(prctl: Callable[..., int], guard: int) -> Callable[[], None]:
    def before() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guard:
            os.kill(os.getpid(), signal.SIGKILL)

    return before


def reaped(wanted: int) -> int | None:
    """Reap whatever has ended; return the exit code of *wanted* if it is among them."""
    code = None
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            if found[0] == wanted:
                status = os.waitstatus_to_exitcode(found[1])
                code = status if status >= 0 else 128 - status
    return code


def waited(wanted: int, woken: int, deadline: float) -> int | None:
    """Wait for the end of *wanted* until *deadline*."""
    while (code := reaped(wanted)) is None and (left := deadline - time.monotonic()) > 0:
        if select.select([woken], [], [], left)[0]:
            os.read(woken, 4096)
    return code


def end_children(wanted: int) -> int | None:
    """Kill every child, and theirs as they become ours; return the exit code of *wanted*."""
    code = None
    while children := children_of(os.getpid()):
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        found = reaped(wanted)
        code = found if code is None else code
        time.sleep(0.01)  # a killed process may take a moment to let go of a device
    return code


def children_of(parent: int) -> list[int]:
    """Return the processes whose parent is *parent*, zombies left out once they are reaped."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                fields: list[Any] = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == parent:
                    found.append(int(folder.name))
    return found


if __name__ == "__main__":
    sys.exit(main())
