"""What `cortex COMMAND --help` costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cortex.__main__ import COMMANDS

SERVERS = {"serve", "neuron"}
HEAVY = {"aiohttp", "attrs", "cattrs", "msgspec", "rich", "textual", "tomlkit", "torch", "urllib3"}
PROGRAM = """
import sys
from cortex.__main__ import main
try:
    main([sys.argv[1], "--help"])
except SystemExit:
    print("imported:", *sys.modules)
"""


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - SERVERS))
def test_help_imports_nothing_heavy_and_fits_80_columns(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, name],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    text, _, imported = said.partition("imported:")
    assert f"usage: cortex {name}" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "\nexamples:\n  cortex " in text
    assert not HEAVY & set(imported.split())
