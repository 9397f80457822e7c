"""Programs under test: started, waited for by what they say, ended by their own id."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager

LISTENS = re.compile(r"listens on (http://[\d.]+:\d+)")


class Program:
    """A running command whose output goes to a file."""

    def __init__(self, command, log, **env):
        self.log = log
        path = os.environ["PATH"]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={"PATH": path, "CORTEX_PLUGINS": "", **env},
                cwd=log.parent,
            )

    def url(self, timeout_s=60):
        """Return the address the program says it listens on."""
        return until(self._listens, timeout_s, self)

    def _listens(self):
        found = LISTENS.search(self.log.read_text())
        assert self.process.poll() is None, self.log.read_text()
        return found and found[1]

    def stop(self):
        """End it as an init system would; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
            raise AssertionError(f"it did not stop:\n{self.log.read_text()}") from None


@contextmanager
def running(command, log, **env):
    program = Program(command, log, **env)
    try:
        yield program
    finally:
        if program.process.poll() is None:
            program.stop()


def until(condition, timeout_s=60, about="", every_s=0.02):
    """Return the first true value of *condition*."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(every_s)
    said = about.log.read_text() if isinstance(about, Program) else about
    raise AssertionError(f"not within {timeout_s} s: {said}")


def descendants(pid):
    """Return the process ids below *pid*."""
    children = subprocess.run(
        ["pgrep", "-P", str(pid)], capture_output=True, text=True, timeout=5, check=False
    ).stdout.split()
    return [int(c) for c in children] + [d for c in children for d in descendants(int(c))]
