"""What tests of clients share: a gateway and a neuron whose model says what `turns` has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cortex.fleet.model import ModelSpec
from tests.clients import fleet as fleets
from tests.clients.fleet import Fleet

SCRIPTS = Path(__file__).parent / "node"
INSTALLED = Path(os.environ.get("CORTEX_TEST_NODE", "nowhere")) / "node_modules"
MODELS = (ModelSpec(id="scripted"), ModelSpec(id="small", context=8))


@pytest.fixture(scope="module")
def speaks() -> str | None:
    """Return the one dialect of the server behind the gateway; None is a neuron."""
    return None


@pytest.fixture(scope="module")
def servers(speaks: str | None) -> Iterator[Fleet]:
    aliases = {"nick": "scripted"}
    with fleets.fleet("tests.clients.turns:SCRIPT", MODELS, aliases, speaks=speaks) as running:
        yield running


@pytest.fixture
def fleet(servers: Fleet) -> Fleet:
    """Return the servers of this module, as if nothing had been asked of them."""
    servers.forget()
    return servers


@pytest.fixture(scope="module")
def run_node(tmp_path_factory: pytest.TempPathFactory, servers: Fleet) -> Callable[[str], Any]:
    """Run every case of a script for node; return what came of each, by its name."""
    if not INSTALLED.is_dir():
        pytest.skip("tests/run.sh installs the packages and says where in CORTEX_TEST_NODE")
    folder = tmp_path_factory.mktemp("node")
    for script in SCRIPTS.glob("*.mjs"):
        shutil.copy(script, folder)
    (folder / "node_modules").symlink_to(INSTALLED.resolve())  # where the scripts look for them

    def run(script: str) -> Any:
        command = ["node", f"{script}.mjs", servers.url]
        env = {"PATH": os.environ["PATH"], "HOME": str(folder)}
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
