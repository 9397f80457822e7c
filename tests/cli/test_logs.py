"""``cortex logs``: several logs as one, in order, none twice, and on after a break."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from cortex.__main__ import main
from tests.cli.conftest import REPOSITORY, sse

LOGS = "/api/v1/logs"


def line(number: int, message: str, *, at: float = 0, level: str = "info") -> dict:
    said = {"number": number, "time": 1_800_000_000 + (at or number), "level": level}
    return {**said, "logger": "cortex.neuron.models", "message": message}


@pytest.fixture
def fleet_logs(gateway, fleet):
    """Return what each log has: a list of lines, or what a follower is told besides."""
    kept = {"gateway": [], "beast": [], "benjy": []}
    told: dict[str, list] = {}
    gateway.json("GET", "/api/v1/fleet", fleet)

    def answer(call):
        name = call.query.get("node", "gateway")
        if name not in kept:
            error = {"error": {"message": f"{name} does not answer", "code": "x"}}
            return 502, {}, [json.dumps(error).encode()]
        lines = kept[name]
        if "follow" not in call.query:
            return 200, {}, [json.dumps({"records": lines}).encode()]
        pieces = [b": keep-alive\n\n", sse({"records": lines}), *map(sse, told.pop(name, ()))]
        return 200, {"content-type": "text/event-stream"}, pieces

    gateway.on("GET", LOGS, answer)
    gateway.kept, gateway.told = kept, told
    return gateway


def test_the_logs_of_all_are_one_in_the_order_of_their_clocks(fleet_logs, capsys):
    fleet_logs.kept["gateway"] = [line(1, "first", at=1), line(2, "fourth", at=4)]
    fleet_logs.kept["beast"] = [line(7, "second", at=2, level="warning")]
    fleet_logs.kept["benjy"] = [line(1, "third", at=3)]

    assert main(["logs"]) == 0

    said = [entry.split(" ", 2) for entry in capsys.readouterr().out.splitlines()]
    assert [rest for _, _, rest in said] == [
        "gateway info    neuron.models: first",
        "beast warning neuron.models: second",
        "benjy info    neuron.models: third",
        "gateway info    neuron.models: fourth",
    ]
    assert re.fullmatch(r"2027-01-\d\d \d\d:\d\d:01\.000", " ".join(said[0][:2]))


def test_json_is_an_object_a_line(fleet_logs, capsys):
    fleet_logs.kept["beast"] = [line(3, "ümlaut")]
    assert main(["logs", "beast", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"source": "beast", **line(3, "ümlaut")}


def asked(fleet_logs) -> list[dict]:
    return [call.query for call in fleet_logs.calls if call.path == LOGS]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["beast"], [{"node": "beast"}]),
        (["gateway"], [{}]),
        (["helexa/small"], [{"model": "Qwen/Qwen3-1.7B", "node": n} for n in ("beast", "benjy")]),
    ],
)
def test_a_node_a_model_or_the_gateway_can_be_asked_about(fleet_logs, args, expected):
    assert main(["logs", *args, "--level", "warning", "-n", "5"]) == 0
    common = {"level": "warning", "lines": "5"}
    found = asked(fleet_logs)
    for query in expected:
        assert {**common, **query} in found
    if "model" in expected[0]:
        assert {**common, "model": "Qwen/Qwen3-1.7B"} in found  # the gateway's own
    assert len(found) == len(expected) + ("model" in expected[0])


def test_what_is_neither_is_told_with_the_nearest(fleet_logs, capsys):
    assert main(["logs", "beats"]) == 1
    said = capsys.readouterr().err
    assert "neither a node nor a model is called 'beats' (did you mean 'beast'?)" in said


def test_a_node_that_cannot_be_asked_does_not_hide_the_others(fleet_logs, capsys):
    del fleet_logs.kept["benjy"]
    fleet_logs.kept["beast"] = [line(1, "here")]
    assert main(["logs"]) == 0
    said = capsys.readouterr()
    assert "here" in said.out
    assert "cortex logs: benjy: benjy does not answer" in said.err
    assert main(["logs", "benjy"]) == 1


@pytest.fixture
def following(fleet_logs):
    """Return what starts ``cortex logs -f`` and yields its process."""
    started = []

    def start(*args: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "cortex", "logs", "-f", *args],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_lines_come_as_they_are_said_none_twice_and_on_after_a_break(fleet_logs, following):
    fleet_logs.kept["beast"] = [line(1, "kept")]
    fleet_logs.told["beast"] = [line(2, "live"), {"reason": "1024 events behind"}]

    process = following("beast", "--json")

    def read() -> str:
        return json.loads(process.stdout.readline())["message"]

    assert [read(), read()] == ["kept", "live"]
    fleet_logs.kept["beast"] = [line(1, "kept"), line(2, "live"), line(3, "while away")]
    assert read() == "while away"
    fleet_logs.kept["beast"] = [line(1, "the node was started anew", at=100)]
    assert read() == "the node was started anew"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert "beast: the stream ended; asking again" in process.stderr.read()


def test_a_follower_that_is_refused_leaves(fleet_logs, following):
    fleet_logs.error("GET", LOGS, 404, "not_found", "beast keeps no log to ask for")
    process = following("beast")
    assert process.wait(20) == 1
    assert "beast keeps no log to ask for" in process.stderr.read()


def test_without_a_gateway_nothing_is_followed(nowhere, capsys):
    assert main(["logs", "-f"]) == 1
    assert "no gateway listens at" in capsys.readouterr().err
