"""``cortex plugins`` with plugins that are really installed, and really broken."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from cortex.__main__ import main

GOOD = """
import cortex

class Newest:
    def choose(self, head, candidates):
        return candidates[-1]

@cortex.hookimpl
def cortex_register_routing_strategies(register):
    register("newest", Newest, summary="the last [candidate]")

@cortex.hookimpl
def cortex_on_request_finished(record):
    pass
"""
BROKEN = {
    "raises": "raise RuntimeError('no libfoo.so here')",
    "misspelt": """
import cortex

@cortex.hookimpl
def cortex_register_routting_strategies(register):
    pass
""",
    "greedy": """
import cortex

@cortex.hookimpl
def cortex_register_routing_strategies(register):
    register("least-loaded", object)
""",
}


def install(folder: Path, name: str, source: str) -> None:
    module = f"{name}_of_test"
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: cortex-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[cortex]\n{name} = {module}\n")


@pytest.fixture
def config(tmp_path, monkeypatch) -> Path:
    """Install one good plugin and three broken ones; return a cortex.toml that finds them."""
    folder = tmp_path / "installed"
    folder.mkdir()
    for name, source in {"good": GOOD, **BROKEN}.items():
        install(folder, name, source)
    monkeypatch.setenv("CORTEX_PLUGINS", "good,raises,misspelt,greedy")
    (tmp_path / "models.toml").write_text("")
    path = tmp_path / "cortex.toml"
    path.write_text('[plugins]\ndirectories = ["installed"]\n')
    return path


def rows(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_built_ins_are_listed_with_their_offers(capsys):
    assert main(["plugins"]) == 0

    shown = rows(capsys.readouterr().out)
    at = shown.index("cortex.routing.least_loaded")
    assert shown[at + 1] == "routing strategy least-loaded fewest requests under way"
    assert "third-party plugins allowed to load: none" in shown
    assert not [row for row in shown if row.startswith("failed")]


def test_a_command_nobody_has_is_told_with_the_nearest(capsys):
    assert main(["stauts"]) == 2

    assert (
        capsys.readouterr().err
        == "cortex: no command is called 'stauts' (did you mean 'status'?)\n"
    )


def test_each_mistake_of_a_file_is_a_line(tmp_path, capsys):
    path = tmp_path / "cortex.toml"
    path.write_text("[gatway]\n[gateway]\nlisten = '127.0.0.1'\n[queue]\nmax_wait_s = 'x'\n")

    assert main(["plugins", "--config", str(path)]) == 2

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("cortex plugins: cortex.toml: ") for line in lines)


def test_what_all_plugins_offer_is_one_table(capsys):
    assert main(["plugins"]) == 0

    lines = capsys.readouterr().out.splitlines()
    said = ("fewest requests under way", "POST /v1/embeddings", "POST /v1/completions")
    assert len({line.index(what) for what in said for line in lines if what in line}) == 1


def test_every_broken_plugin_is_named_with_its_cause_and_the_good_one_works(config, command):
    done = command("plugins", "--config", str(config))

    assert (done.returncode, done.stderr) == (0, "")
    shown = rows(done.stdout)
    at = shown.index("good (cortex-good)")
    assert shown[at + 1 : at + 3] == [
        "routing strategy newest the last [candidate]",
        "hook cortex_on_request_finished",
    ]
    assert "failed: raises (cortex-raises): RuntimeError: no libfoo.so here" in shown
    [misspelt] = [row for row in shown if row.startswith("failed: misspelt (cortex-misspelt): ")]
    assert "unknown hook" in misspelt
    assert "cortex_register_routting_strategies" in misspelt
    taken = "routing strategy 'least-loaded' is already offered by cortex.routing.least_loaded"
    assert f"failed: greedy (cortex-greedy): {taken}" in shown


def test_json_says_the_same(config, command):
    done = command("plugins", "--json", "--config", str(config))

    found = json.loads(done.stdout)
    assert {failure["name"] for failure in found["failures"]} == set(BROKEN)
    good = next(plugin for plugin in found["plugins"] if plugin["name"] == "good")
    assert good == {
        "name": "good",
        "distribution": "cortex-good",
        "offers": [
            {"kind": "routing strategy", "name": "newest", "summary": "the last [candidate]"}
        ],
        "hooks": ["cortex_on_request_finished"],
    }


def test_what_the_configuration_leaves_out_or_misses_is_said(config, command):
    with config.open("a") as file:
        file.write('block = ["good"]\nrequire = ["raises", "absent"]\n')

    done = command("plugins", "--config", str(config))

    assert done.returncode == 0
    shown = rows(done.stdout)
    assert "blocked by [plugins] block: good" in shown
    assert "missing: absent is required and not installed" in shown
    assert not [row for row in shown if row.startswith("good")]


def test_a_configuration_that_is_not_there_is_named(capsys, tmp_path):
    path = tmp_path / "cortex.toml"

    assert main(["plugins", "--config", str(path)]) == 2

    assert f"{path}: no such file" in capsys.readouterr().err


def test_the_plugins_of_the_cortex_toml_that_is_here_are_listed(config, monkeypatch, capsys):
    monkeypatch.chdir(config.parent)

    assert main(["plugins"]) == 0

    assert "good (cortex-good)" in rows(capsys.readouterr().out)


def test_a_full_disk_is_a_sentence(capsys, monkeypatch):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert main(["plugins"]) == 1
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()

    assert capsys.readouterr().err == "cortex plugins: No space left on device\n"
