"""How these tests build: from a copy of the sources, as another checkout would."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

ROOT = Path(__file__).parents[2]
SOURCES = ("cortex", "LICENSE", "README.md", "pyproject.toml", "shiv.toml")
BUILD_LIMIT_S = 500

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@attrs.frozen(kw_only=True)
class Built:
    """The built file, the sources it is of, and what the builder said of it."""

    pyz: Path
    checkout: Path
    figures: Mapping[str, Any]
    lines: tuple[str, ...]


def copy_sources(source: Path, target: Path) -> Path:
    """Copy what a build reads, as another checkout would have it."""
    target.mkdir(parents=True)
    for name in SOURCES:
        if (source / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(source / name, target / name, ignore=ignored)
        else:
            shutil.copy(source / name, target / name)
    return target


def build(checkout: Path, *arguments: str, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
    """Run the builder that is in *checkout*."""
    return subprocess.run(
        [sys.executable, "-m", "cortex.zipapp", *arguments],
        cwd=checkout,
        umask=umask,
        capture_output=True,
        text=True,
        timeout=BUILD_LIMIT_S,
        check=False,
    )
