"""`cortex top` in a terminal that is one, tmux's, before a gateway and two neurons that are."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from tests.e2e.programs import running, until

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux (apt install tmux)"),
]
NEURON_TOML = """
listen = "127.0.0.1:0"
harnesses = ["echo"]
"""
MODELS_TOML = """
[[models]]
id = "parrot"
harness = "echo"
"""
CORTEX_TOML = """
[gateway]
listen = "127.0.0.1:0"
metrics_listen = "127.0.0.1:0"
"""
NODE_TOML = """
[[neurons]]
name = "{name}"
endpoint = "{endpoint}"
"""


class Tmux:
    """A server of our own with one session, whose only window runs a command."""

    def __init__(self, command, columns=100, lines=30):
        self._socket = f"cortex-{uuid4().hex}"
        size = ("-x", str(columns), "-y", str(lines))
        self.do("-f", os.devnull, "new-session", "-d", "-s", "top", *size, shlex.join(command))

    def do(self, *arguments):
        line = ["tmux", "-L", self._socket, *arguments]
        done = subprocess.run(line, capture_output=True, text=True, timeout=10, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def screen(self):
        return self.do("capture-pane", "-p", "-t", "top")

    def sees(self, *wanted):
        """Wait until all that is *wanted* is on the screen, blanks aside; return the screen."""

        def right():
            self.last = self.screen()
            plain = "\n".join(" ".join(line.split()) for line in self.last.splitlines())
            return all(each in plain for each in wanted)

        try:
            until(right, every_s=0.1)
        except AssertionError:
            raise AssertionError(f"{wanted} never came, but:\n{self.last}") from None
        return self.last

    def press(self, *keys):
        self.do("send-keys", "-t", "top", *keys)


@pytest.fixture
def gateway(tmp_path):
    """Return the address of a gateway with the nodes `left` and `right`."""
    cortex = [sys.executable, "-m", "cortex"]
    env = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    (tmp_path / "neuron.toml").write_text(NEURON_TOML)
    (tmp_path / "models.toml").write_text(MODELS_TOML)
    with ExitStack() as stack:
        toml = CORTEX_TOML
        line = [*cortex, "neuron", "--config", str(tmp_path / "neuron.toml")]
        for name in ("left", "right"):
            neuron = stack.enter_context(running(line, tmp_path / f"{name}.log", **env))
            toml += NODE_TOML.format(name=name, endpoint=neuron.url())
        (tmp_path / "cortex.toml").write_text(toml)
        line = [*cortex, "serve", "--config", str(tmp_path / "cortex.toml")]
        yield stack.enter_context(running(line, tmp_path / "serve.log", **env)).url()


def ask(url):
    body = {"model": "parrot", "messages": [{"role": "user", "content": "who is there"}]}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())["choices"][0]["message"]["content"]


def test_nodes_a_load_and_a_request_are_shown_in_a_terminal(gateway, tmp_path):
    env = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "CORTEX_PLUGINS": ""}
    settings = [f"{name}={value}" for name, value in env.items()]
    line = ["env", *settings, sys.executable, "-m", "cortex", "top", "--gateway", gateway]
    tmux = Tmux(line)
    try:
        tmux.sees("2 of 2 nodes healthy", "left ok", "right ok", "parrot on demand")
        tmux.press("l")
        tmux.sees("Load parrot?", "on left", "on right")
        tmux.press("Down", "Down", "Down", "Enter")
        tmux.sees("loaded: parrot on right")
        assert "who is there" in ask(gateway)
        assert "left" in tmux.sees("parrot right loaded 0")
        tmux.press("2")
        tmux.sees("0 under way, and the last 1 that are over", "ok", "parrot right")
        tmux.press("3")
        tmux.sees("model parrot on right: loaded", "tokens in")
        tmux.press("q")
        until(lambda: not lives(tmux))
    finally:
        if lives(tmux):
            tmux.do("kill-server")


def lives(tmux):
    try:
        tmux.do("has-session")
    except AssertionError:
        return False
    return True
