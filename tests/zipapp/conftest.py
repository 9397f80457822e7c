"""One slim build for the whole session, shared by all xdist workers."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.zipapp.builds import ROOT, Built, Run, build, copy_sources

START_LIMIT_S = 60


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all workers of this session see."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "zipapp-shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def built(shared: Path) -> Built:
    checkout, said = shared / "checkout", shared / "build.json"
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            done = build(copy_sources(ROOT, checkout), "slim", "--json")
            said.write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
    code, out, err = json.loads(said.read_text())
    assert code == 0, f"the slim build failed:\n{out}{err}"
    lines = tuple(out.splitlines())
    figures = json.loads(lines[-1])
    return Built(pyz=Path(figures["output"]), checkout=checkout, figures=figures, lines=lines)


@pytest.fixture
def run(built: Built, shared: Path, tmp_path: Path) -> Run:
    """Return a function that runs the built file, far from any checkout or home."""

    def start(
        *arguments: str,
        pyz: Path = built.pyz,
        python: tuple[str, ...] = (sys.executable,),
        cwd: Path = tmp_path,
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}"
        base = {
            "PATH": path,
            "HOME": str(tmp_path),
            "SHIV_ROOT": str(shared / "cache"),
            "CORTEX_PLUGINS": "",
        }
        return subprocess.run(
            [*python, str(pyz), *arguments],
            cwd=cwd,
            env={**base, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_LIMIT_S,
            check=False,
        )

    return start
