"""docs/multi-node.md, followed word by word on loopback; only its ports are others."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.programs import running

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/multi-node.md").read_text("utf-8")
BLOCK = re.compile(r"^```(toml|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PORTS = ("13131", "13132", "31313", "31314")
COMMAND_S = 180
pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(400),
    pytest.mark.xdist_group("torch"),
]


def free_ports(count):
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [str(each.getsockname()[1]) for each in sockets]


def test_who_follows_the_guide_has_a_fleet_of_two(tmp_path, model_cache):
    guide = GUIDE
    for port, free in zip(PORTS, free_ports(len(PORTS)), strict=True):
        guide = guide.replace(f":{port}", f":<{free}")
    guide = guide.replace(":<", ":")
    gateway = re.search(r'listen = "(127.0.0.1:\d+)"\nmetrics', guide)[1]
    home = {
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "CORTEX_CACHE": str(model_cache),
        "CORTEX_PLUGINS": "",
        "CORTEX_URL": f"http://{gateway}",
        "NEURON_HARNESS__TORCH__THREADS": "1",  # other tests run beside this
    }

    def say(line):
        command = [sys.executable, "-m", *shlex.split(line)]
        done = subprocess.run(
            command, cwd=tmp_path, env=home, capture_output=True, text=True,
            timeout=COMMAND_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        return done.stdout

    said = {}
    with ExitStack() as programs:
        for kind, text in BLOCK.findall(guide):
            if kind == "toml":
                path = tmp_path / text.splitlines()[0].removeprefix("# ")
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, "utf-8")
                continue
            for line in text.splitlines():
                if line.endswith(" &"):
                    command = [sys.executable, "-m", *shlex.split(line.removesuffix(" &"))]
                    log = tmp_path / f"{len(said)}.txt"
                    program = programs.enter_context(running(command, log, **home))
                    said[line] = program.url()
                else:
                    said[line] = say(line)
        fleet = json.loads(say("cortex status --json"))
        requests = json.loads(say("cortex requests --json"))

    assert {node["name"]: [model["id"] for model in node["models"]] for node in fleet["nodes"]} == {
        "beast": ["smollm2-135m"],
        "benjy": ["smollm2-135m"],
    }
    answers = [text for line, text in said.items() if line.startswith("cortex chat")]
    assert [bool(text.strip()) for text in answers] == [True, True]
    assert sorted(each["node"] for each in requests["requests"]) == ["beast", "benjy"]
