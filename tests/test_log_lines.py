"""The lines of a program: what goes where, in which form."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

LINES = """
import logging, sys
from cortex import log_lines
log_lines.begin(sys.argv[1], sys.argv[2])
log_lines.say("listens")
log = logging.getLogger("cortex.thing")
log.info("it went %s", "well")
log.warning("two\\nlines \\u2714")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("odd")
"""


def written(level: str, form: str) -> tuple[list[str], list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", LINES, level, form], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_for_people_what_is_said_goes_to_stdout_and_the_log_to_stderr():
    out, err = written("info", "text")
    assert out == ["listens"]
    assert err[:2] == ["INFO cortex.thing: it went well", "WARNING cortex.thing: two"]
    assert err[-1] == "ZeroDivisionError: division by zero"


def test_as_json_everything_is_an_object_a_line_on_stderr():
    out, err = written("info", "json")
    lines = [json.loads(line) for line in err]
    assert out == []
    assert [(line["level"], line["module"], line["message"]) for line in lines] == [
        ("info", "cortex.said", "listens"),
        ("info", "cortex.thing", "it went well"),
        ("warning", "cortex.thing", "two\nlines \u2714"),
        ("error", "cortex.thing", "odd"),
    ]
    assert lines[3]["error"].endswith("ZeroDivisionError: division by zero")
    assert all(line["time"].endswith("+00:00") for line in lines)


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_is_said_is_said_whatever_the_level(form):
    out, err = written("error", form)
    assert [line for line in (*out, *err) if "listens" in line]
    assert not [line for line in (*out, *err) if "two" in line]
