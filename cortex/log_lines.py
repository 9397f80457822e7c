"""
The lines a program writes: for people, or JSON for a collector.

For people what an operator should know at the start goes to stdout and the log to stderr, without a
time.  As JSON all of it goes to stderr, an object a line, and nothing ever has to be rotated: who
reads stderr, such as systemd's journal, keeps it in bounds.
"""

from __future__ import annotations

import json
import logging
import sys
from argparse import ArgumentParser
from datetime import UTC, datetime

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
SAID = "cortex.said"  # the logger of what is said whatever the level


class JsonLine(logging.Formatter):
    """An object with `time` (UTC), `level`, `module`, `message`, and `error` with a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "module": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of a program that writes a log."""
    parser.add_argument("--log-level", default="info", choices=LEVELS)
    parser.add_argument("--log-format", default="text", choices=FORMATS)


def begin(level: str, form: str) -> None:
    """Have the process's lines written in *form*, and of its log those of *level* and above."""
    said = logging.getLogger(SAID)
    said.setLevel(logging.INFO)
    if form == "json":
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLine())
        logging.basicConfig(level=level.upper(), handlers=[handler])
        return
    logging.basicConfig(level=level.upper(), format="%(levelname)s %(name)s: %(message)s")
    said.propagate = False
    said.addHandler(logging.StreamHandler(sys.stdout))


def say(line: str) -> None:
    """Write what an operator should know, whatever the level."""
    logging.getLogger(SAID).info("%s", line)
