"""Lines of several logs, as one: in the order of their clocks, then as they come."""

from __future__ import annotations

import argparse
import json
import queue
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

import attrs
import msgspec
from rich.text import Text

from cortex.cli.client import Gateway, GatewayUnreachable
from cortex.cli.console import console
from cortex.errors import CortexError, RemoteError
from cortex.fleet.node import Fleet, LogLine
from cortex.registry import did_you_mean

GATEWAY = "gateway"
LOGS = "/api/v1/logs"
SILENCE_S = 60.0  # a keep-alive comes four times as often
WAITS_S = (1.0, 2.0, 5.0, 10.0)  # before the gateway is asked again
AT_ONCE = 16
SERVER_ERROR = 500
STYLES = {"warning": "yellow", "error": "red", "debug": "dim"}


@attrs.frozen(kw_only=True)
class Source:
    """A log, and what of it is wanted."""

    name: str
    query: dict[str, str]

    def path(self, **more: str) -> str:
        """Return where the gateway has it."""
        return f"{LOGS}?{urlencode({**self.query, **more})}"


def sources(gateway: Gateway, args: argparse.Namespace) -> list[Source]:
    """
    Return the logs that are meant.

    Raises:
        CortexError: There is no such node or model.
    """
    fleet = gateway.get_as(Fleet, "/api/v1/fleet")
    nodes = [node.name for node in fleet.nodes if node.discovery is not None or node.health]
    query = {"level": args.level, "lines": str(args.lines)}
    names, model = [GATEWAY, *nodes], ""
    if args.about in (GATEWAY, *(node.name for node in fleet.nodes)):
        names = [args.about]
    elif args.about is not None:
        model = fleet.aliases.get(args.about, args.about)
        loaded = (m.id for node in fleet.nodes for m in node.models)
        known = dict.fromkeys((*fleet.catalogue, *loaded))
        if model not in known:
            near = {**known, **dict.fromkeys((*fleet.aliases, *names))}
            raise CortexError(
                f"neither a node nor a model is called {args.about!r}",
                hint=did_you_mean(args.about, near),
            )
        query["model"] = model
    return [
        Source(name=name, query=query if name == GATEWAY else {**query, "node": name})
        for name in names
    ]


class Printer:
    """Prints lines, none twice."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self._console = console()
        self._last: dict[str, tuple[float, int]] = {}

    def line(self, source: str, line: LogLine) -> None:
        """Print a line, unless it was printed."""
        time, number = self._last.get(source, (0.0, 0))
        if line.time <= time and line.number <= number:  # else a clock, or a program, began again
            return
        self._last[source] = line.time, line.number
        if self._json:
            print(
                json.dumps({"source": source, **attrs.asdict(line)}, ensure_ascii=False), flush=True
            )
            return
        when = datetime.fromtimestamp(line.time).astimezone().isoformat(" ", "milliseconds")[:23]
        level = Text(f"{line.level:<7}", STYLES.get(line.level, ""))
        words = f" {line.logger.removeprefix('cortex.')}: {line.message}"
        text = Text.assemble((when, "dim"), f" {source} ", level, words)
        self._console.print(text, soft_wrap=True)


def recent(gateway: Gateway, asked: Sequence[Source], printer: Printer) -> int:
    """Print what was logged, oldest first; return how many could not be asked."""

    def ask(source: Source) -> tuple[Source, list[LogLine] | CortexError]:
        try:
            records = gateway.get_as(dict[str, list[LogLine]], source.path())["records"]
        except CortexError as error:
            return source, error
        return source, records

    failed, lines = 0, []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for source, said in pool.map(ask, asked):
            if isinstance(said, CortexError):
                failed += 1
                warn(source, said)
            else:
                lines += [(line.time, line.number, source.name, line) for line in said]
    for _, _, name, line in sorted(lines, key=lambda entry: entry[:3]):
        printer.line(name, line)
    return failed


def warn(source: Source, error: object) -> None:
    """Say why a log is not there."""
    print(f"cortex logs: {source.name}: {error}", file=sys.stderr, flush=True)


def follow(gateway: Gateway, asked: Sequence[Source], printer: Printer) -> int:
    """Print what comes until Ctrl-C; return 1 once nobody is left."""
    heard: queue.Queue[tuple[Source, Any]] = queue.Queue()
    for source in asked:
        threading.Thread(
            target=_listen, args=(gateway, source, heard.put), daemon=True, name=source.name
        ).start()
    left = len(asked)
    while left:
        source, said = heard.get()
        match said:
            case LogLine():
                printer.line(source.name, said)
            case None:
                left -= 1
            case _:
                warn(source, said)
    return 1


def _listen(gateway: Gateway, source: Source, tell: Any) -> None:
    """Tell each line of a log; begin again where it breaks off; None is the end."""
    silent = 0
    while True:
        try:
            for data in gateway.stream(source.path(follow="1"), None, timeout_s=SILENCE_S):
                silent = 0
                for said in _read(data):
                    tell((source, said))
            why: object = "the stream ended"
        except (GatewayUnreachable, RemoteError) as error:
            why = error
            if error.status < SERVER_ERROR and isinstance(error, RemoteError):
                tell((source, error))
                tell((source, None))
                return
        if not silent:
            tell((source, f"{why}; asking again"))
        threading.Event().wait(WAITS_S[min(silent, len(WAITS_S) - 1)])
        silent += 1


def _read(data: str) -> list[LogLine | str]:
    """Return what an event is: lines, or why there are no more."""
    try:
        event = msgspec.json.decode(data)
        if "records" in event:
            return msgspec.convert(event["records"], list[LogLine | str])
        return [msgspec.convert(event, LogLine) if "message" in event else str(event["reason"])]
    except (msgspec.MsgspecError, KeyError, TypeError):
        return [f"an event nobody understands: {data[:80]}"]
