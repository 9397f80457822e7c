"""Runs the built file as a user far from any checkout would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.zipapp.builds import Built, Run

START_LIMIT_S = 60


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
