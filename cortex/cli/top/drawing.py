"""Bars, sparklines and short names; nothing that only a colour would tell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle

import attrs
from rich.text import Text

from cortex.cli.console import duration, gib
from cortex.cli.loads import stage
from cortex.fleet.node import Device, FleetNode, LoadJob

EIGHTHS = " ▏▎▍▌▋▊▉█"
LEVELS = "▁▂▃▄▅▆▇█"
FILLS = "█▓▒░"
INKS = ("cyan", "magenta", "blue", "green", "yellow")
OTHERS, FREE = "▚", "·"


@attrs.frozen(kw_only=True)
class Segment:
    """Part of a bar."""

    name: str
    size: float
    fill: str
    ink: str = ""


def bar(share: float, columns: int) -> str:
    """Draw *share*, 0 to 1, in eighths of a column."""
    eighths = round(min(max(share, 0.0), 1.0) * columns * 8)
    full, rest = divmod(eighths, 8)
    return (FILLS[0] * full + EIGHTHS[rest] * (rest > 0)).ljust(columns, FREE)


def split_bar(segments: Iterable[Segment], total: float, columns: int) -> Text:
    """Draw *segments* beside each other; what they leave of *total* is free."""
    drawn, upto = Text(), 0.0
    for segment in segments:
        upto += segment.size
        end = min(round(upto / (total or 1) * columns), columns)
        drawn.append(segment.fill * (end - len(drawn.plain)), segment.ink)
    drawn.append(FREE * (columns - len(drawn.plain)), "dim")
    return drawn


def sparkline(samples: Sequence[float], columns: int) -> str:
    """Draw the last *columns* samples; the highest of all of *samples* is a full column."""
    top = max(samples, default=0.0)
    if top <= 0:
        return ""
    last = samples[-columns:]
    return "".join(LEVELS[min(int(max(s, 0.0) / top * 8), 7)] for s in last).rjust(columns)


def age(seconds: float) -> str:
    """Format a time since; from a minute on without seconds, so that it seldom changes."""
    said = duration(seconds)
    return said.partition(" ")[0] if "m " in said else said


def short(name: str, columns: int) -> str:
    """Cut a model's id to *columns*, its maker first."""
    if len(name) <= columns:
        return name
    name = name.rpartition("/")[2]
    return name if len(name) <= columns else f"{name[: columns - 1]}…"


def memory(node: FleetNode, device: Device) -> list[Segment]:
    """Return what is in a device's memory: its models, the largest first, and all else."""
    fills, inks = cycle(FILLS), cycle(INKS)
    there = [
        (model.vram_used_mb / len(model.devices), model.id)
        for model in node.models
        if device.index in model.devices and model.vram_used_mb
    ]
    found = [
        Segment(name=name, size=size, fill=next(fills), ink=next(inks))
        for size, name in sorted(there, key=lambda each: (-each[0], each[1]))
    ]
    rest = device.vram_used_mb - sum(each.size for each in found)
    if rest >= 1:
        found.append(Segment(name="other", size=rest, fill=OTHERS))
    return found


def legend(segments: Sequence[Segment], columns: int) -> Text:
    """Say what the fills of a bar stand for, as far as *columns* go."""
    drawn = Text()
    each_may = max(columns // max(len(segments), 1) - 8, 6)
    for segment in segments:
        drawn.append(f"{segment.fill} ", segment.ink)
        drawn.append(f"{short(segment.name, each_may)} {gib(segment.size)}  ")
    drawn.truncate(columns, overflow="ellipsis")
    return drawn


def progress(job: LoadJob, columns: int) -> str:
    """Draw how far a load is, in *columns*: with its stage where there is room."""
    if job.progress is None:
        return stage(job)[:columns]
    percent = f"{job.progress:.0%}"
    left = "" if job.eta_s is None else duration(job.eta_s)
    said = f"{stage(job)[: columns - 26]} " if columns >= 36 else ""  # noqa: PLR2004 - with a bar
    room = max(min(columns - len(said) - len(percent) - len(left) - 2, 16), 4)
    return f"{said}{bar(job.progress, room)} {percent} {left}".rstrip()
