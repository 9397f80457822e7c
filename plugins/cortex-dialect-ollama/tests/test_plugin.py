"""That cortex finds it: installed, or as a folder a single-file cortex is told of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cortex.config.schema import PluginSettings
from cortex.plugins import Plugins

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
PROJECT = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
OFFERS = ["ollama-chat", "ollama-generate", "ollama-embed", "ollama-embeddings"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a folder as `pip install --no-deps --target` leaves it."""
    place = tmp_path / "plugins"
    shutil.copytree(HERE / "src", place, ignore=shutil.ignore_patterns("__pycache__"))
    metadata = place / f"{PROJECT['name'].replace('-', '_')}-{PROJECT['version']}.dist-info"
    metadata.mkdir()
    named = f"Metadata-Version: 2.4\nName: {PROJECT['name']}\nVersion: {PROJECT['version']}\n"
    (metadata / "METADATA").write_text(named)
    (points,) = PROJECT["entry-points"].items()
    lines = [f"[{points[0]}]", *(f"{name} = {module}" for name, module in points[1].items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    return place


def shown(program: list[str], folder: Path, tmp_path: Path, **env: str) -> dict:
    """Run `cortex plugins` with *folder* as a plugin directory."""
    config = tmp_path / "cortex.toml"
    config.write_text(f'[plugins]\ndirectories = ["{folder}"]\n')
    (tmp_path / "models.toml").touch()
    plain = {name: value for name, value in os.environ.items() if "PYTHON" not in name}
    done = subprocess.run(
        [*program, "plugins", "--json", "--config", str(config)],
        env={**plain, "CORTEX_PLUGINS": "ollama", **env},
        cwd=tmp_path,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def holds(found: dict) -> None:
    assert found["failures"] == []
    (ours,) = [plugin for plugin in found["plugins"] if plugin["name"] == "ollama"]
    assert ours["distribution"] == PROJECT["name"]
    assert [(o["kind"], o["name"]) for o in ours["offers"]] == [("dialect", o) for o in OFFERS]


def test_a_plugin_directory_makes_it_found(folder, tmp_path):
    program = [sys.executable, "-m", "cortex"]
    holds(shown(program, folder, tmp_path, PYTHONPATH=str(ROOT)))


@pytest.mark.zipapp
@pytest.mark.timeout(300)
def test_the_single_file_finds_it_in_a_plugin_directory(built, folder, tmp_path):
    program = [sys.executable, str(built.pyz)]
    holds(shown(program, folder, tmp_path, SHIV_ROOT=str(tmp_path / "cache")))


def test_an_installed_one_is_found():
    found = Plugins(PluginSettings(only=frozenset({"ollama"})))
    if "ollama" not in found.loaded():
        pytest.skip("it is not installed here")
    assert found.distribution("ollama") == PROJECT["name"]
    assert set(OFFERS) <= {offer.name for offer in found.offers("dialect")}
