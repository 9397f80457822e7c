"""Why a server ended, in words, read off the last lines of its log."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from cortex.errors import CortexError, InsufficientVram, LoadFailed, UnsupportedArchitecture

SHOWN_LINES = 6
NOT_FOUND, KILLED = 127, 137
UNITS = {"MiB": 1, "MB": 1, "GiB": 1024, "GB": 1024}
ARCHITECTURE = (
    re.compile(r"Model architectures \['?(?P<type>[^\]']+)'?\] are not supported for now"),
    re.compile(r"model type `(?P<type>[^`]+)` but Transformers does not recognize"),
    re.compile(r"unknown model architecture: '(?P<type>[^']+)'"),
)
SIZE = r"(?P<{}>[\d.]+) ?(?P<{}_unit>[GM]i?B)"
NEEDED, FREE = SIZE.format("needed", "needed"), SIZE.format("free", "free")
WHOLE = re.compile(  # what it wants of a device in all
    r"Free memory on device[^(]*\((?P<free>[\d.]+)/[\d.]+ (?P<free_unit>GiB)\) on startup is less"
    r" than desired GPU memory utilization \([\d.]+, " + NEEDED
)
MORE = (  # what it wants behind what it has
    re.compile(NEEDED + r" KV cache is needed.*available KV cache memory \(" + FREE),
    re.compile(
        r"out of memory\. Tried to allocate " + NEEDED + r".*? of which " + FREE + " is free"
    ),
    re.compile(r"allocating " + NEEDED + r" on device \d+: cudaMalloc failed: out of memory"),
    re.compile(r"No available memory for the cache blocks"),
    re.compile(r"Not enough memory\. Please try to increase --mem-fraction-static"),
    re.compile(r"weights leave no GPU memory for the KV cache"),
    re.compile(r"out of memory|failed to allocate (?:buffer|compute)", re.IGNORECASE),
)
IN_USE = re.compile(r"address already in use|couldn't bind", re.IGNORECASE)
LOUD = re.compile(r"error|exception|failed|unable|cannot|could not", re.IGNORECASE)
DULL = re.compile(r"^\s*File \"|^Traceback|^\W*$")  # of a traceback all but its last line


def cause_of(
    what: str, tail: Sequence[str], code: int, *, had_mb: int = 0, devices: int = 1
) -> CortexError:
    """
    Return why a server could not be started.

    Args:
        what: Its harness and model, for the message.
        tail: The last lines of its log.
        code: What it ended with.
        had_mb: What it could take of each device; 0 is unknown.
        devices: Over how many it was spread.
    """
    for line in reversed(tail):  # the last word is nearest to the truth
        if found := first(ARCHITECTURE, line):
            return UnsupportedArchitecture(
                f"{what}: it does not run models of type {found['type']!r}",
                details={"model_type": found["type"]},
            )
    for pattern in (WHOLE, *MORE):  # those with figures say more
        for line in reversed(tail):
            if found := pattern.search(line):
                return out_of_memory(f"{what}: {spoken(line)}", found, had_mb, devices)
    return LoadFailed(f"{what}: the server ended with {ending(code)}: {last_words(tail)}")


def out_of_memory(
    message: str, found: re.Match[str], had_mb: int, devices: int
) -> InsufficientVram:
    """
    Return that, with how much it needs of all its devices, at least, and had.

    So whoever places models looks for more room than there was, and does not try the same again.
    """
    needed_mb, free_mb = in_mb(found, "needed"), in_mb(found, "free")
    if found.re is not WHOLE:
        needed_mb, free_mb = had_mb + max(needed_mb - free_mb, 1), had_mb
    if not free_mb:
        return InsufficientVram(message)
    return InsufficientVram(
        message, details={"needed_mb": needed_mb * devices, "free_mb": free_mb * devices}
    )


def in_mb(found: re.Match[str], name: str) -> int:
    """Return a size of a line in MiB; 0 if it does not say it."""
    groups = found.groupdict()
    return round(float(groups[name]) * UNITS[groups[f"{name}_unit"]]) if groups.get(name) else 0


def ending(code: int) -> str:
    """Say what a server ended with."""
    if code == NOT_FOUND:
        return f"code {code}, its program was not found"
    if code == KILLED:
        return "SIGKILL, as the kernel does where the host has no memory left"
    return f"signal {code - 128}" if code > 128 else f"code {code}"  # noqa: PLR2004 - a shell's


def last_words(tail: Sequence[str]) -> str:
    """Return the lines that say most of why it ended, else the last ones."""
    lines = [line for line in map(spoken, tail) if not DULL.search(line)]
    loud = [line for line in lines if LOUD.search(line)]
    return " | ".join((loud or lines)[-SHOWN_LINES:]) or "it said nothing"


def spoken(line: str) -> str:
    """Return what a line says, without who says it and when."""
    return re.sub(
        r"^(?:\([^)]*pid[^)]*\) )?(?:(?:INFO|WARNING|ERROR) [-\d]+ [:.\d]+ \[[^\]]+\] ?)?", "", line
    )


def first(patterns: Iterable[re.Pattern[str]], line: str) -> re.Match[str] | None:
    """Return the first match there is."""
    return next((found for pattern in patterns if (found := pattern.search(line))), None)
