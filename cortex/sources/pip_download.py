"""Run ``pip download`` as a program of its own: its progress, its silence and its errors."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

from cortex.errors import RepoFetchFailed

BEAT_S = 1.0  # how often progress is yielded though nothing moved, so that a caller can stop
END_S = 5.0  # pip removes its temporary files in this time
SILENT_BAR_FACTOR = 15  # a pip before 24.1 has no raw bar and says nothing while it downloads
_BAR = re.compile(r"Progress (\d+) of (\d+)\n")
_UNREACHABLE = re.compile(r"connection broken|Max retries|ConnectTimeout|NewConnectionError")


def download(
    requirement: str, into: Path, *, python: str, quiet_s: float
) -> Generator[tuple[int, int], None, None]:
    """
    Put the wheel of *requirement* into a folder; yield bytes done and in all (0 if not known).

    Closing the iterator ends pip.

    Args:
        requirement: ``name==version``.
        into: An existing folder.
        python: The interpreter whose pip to run.
        quiet_s: Seconds without a word after which pip is ended.

    Raises:
        RepoFetchFailed: With pip's reason.
    """
    command = [python, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--dest", str(into), requirement]
    command += ["--progress-bar"]
    status, said = yield from _run([*command, "raw"], quiet_s)
    if status and "invalid choice: 'raw'" in said:
        status, said = yield from _run([*command, "off"], quiet_s * SILENT_BAR_FACTOR)
    if status:
        raise _explained(requirement, said, python)


def _run(command: list[str], quiet_s: float) -> Generator[tuple[int, int], None, tuple[int, str]]:
    """Yield progress; return the exit status and the last words."""
    try:
        process = subprocess.Popen(  # noqa: S603 - our interpreter, and a checked requirement
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        raise RepoFetchFailed(f"cannot run {command[0]!r}: {error.strerror}") from error
    with process:
        try:
            said = yield from _watch(process, quiet_s)
            return process.wait(), said  # it has closed its output: it is on its way out
        finally:
            _end(process)


def _watch(
    process: subprocess.Popen[bytes], quiet_s: float
) -> Generator[tuple[int, int], None, str]:
    assert process.stdout  # noqa: S101 - for the type checker: it is a pipe
    said, done, total = "", 0, 0
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    heard = time.monotonic()
    while True:
        if poll.poll(min(BEAT_S, quiet_s) * 1000):
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                return said
            heard = time.monotonic()
            said += data.decode(errors="replace")
            if bars := _BAR.findall(said):
                done, total = map(int, bars[-1])
                said = _BAR.sub("", said)
            said = said[-8192:]
        elif time.monotonic() - heard > quiet_s:
            raise RepoFetchFailed(f"pip said nothing for {quiet_s:g} s and was ended")
        yield done, total


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _explained(requirement: str, said: str, python: str) -> RepoFetchFailed:
    name, _, version = requirement.partition("==")
    if "No module named pip" in said:
        return RepoFetchFailed(
            f"cannot fetch {requirement}: {python} has no pip",
            hint=f"run `{python} -m ensurepip`, or install your system's package of pip",
        )
    if _UNREACHABLE.search(said):
        return RepoFetchFailed(
            f"cannot fetch {requirement}: the package index cannot be reached",
            hint="check the network and pip's configuration, or install the package by hand",
        )
    if versions := re.search(r"\(from versions: (.*?)\)", said):
        if versions[1] == "none":
            return RepoFetchFailed(
                f"cannot fetch {requirement}: no wheel of {name!r} is offered",
                hint="check the name, and pip's configuration",
            )
        return RepoFetchFailed(
            f"cannot fetch {requirement}: {name!r} has no version {version}",
            hint=f"versions: {versions[1]}",
        )
    lines = [line for line in said.splitlines() if line.startswith("ERROR:")] or said.splitlines()
    reason = lines[-1].removeprefix("ERROR:").strip() if lines else "pip gave no reason"
    return RepoFetchFailed(f"cannot fetch {requirement}: {reason}")
