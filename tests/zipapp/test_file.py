"""The built file as a file: what is in it, and how it starts."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

import cortex
from cortex.__main__ import COMMANDS
from tests.zipapp.builds import Built, Run

pytestmark = [pytest.mark.zipapp, pytest.mark.timeout(600), pytest.mark.xdist_group("zipapp")]

PLUGIN = """
from cortex import hookimpl

class Darts:
    def choose(self, head, candidates):
        return candidates[0]

@hookimpl
def cortex_register_routing_strategies(register):
    register("darts", Darts, summary="whatever is hit")
"""


def test_version_names_cortex_and_the_interpreter(run: Run) -> None:
    done = run("--version")

    assert done.stdout == f"cortex {cortex.__version__} (Python {sys.version.split()[0]})\n"
    assert (done.returncode, done.stderr) == (0, "")


def test_help_names_every_command(run: Run) -> None:
    done = run("--help")

    assert (done.returncode, done.stderr) == (0, "")
    assert [name for name in COMMANDS if name not in done.stdout] == []


def test_the_file_is_a_program(run: Run) -> None:
    done = run("--version", python=())

    assert done.stdout.startswith("cortex ")


def test_a_folder_called_cortex_where_it_is_started_is_not_imported(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "cortex").mkdir()
    (tmp_path / "cortex" / "__init__.py").write_text("raise SystemExit('the wrong cortex')")

    done = run("--version", cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_user_without_a_home_sets_shiv_root(run: Run, tmp_path: Path) -> None:
    done = run("--version", HOME="/proc/nobody", SHIV_ROOT=str(tmp_path / "cache"))

    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run: Run, command: str) -> None:
    done = run(command, "--help")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: cortex {command}")


def test_another_python_is_refused_with_a_sentence(built: Built, run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.pyz"
    with zipfile.ZipFile(built.pyz) as old, zipfile.ZipFile(other, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename == "site-packages/cortex/_built_for.py":
                data = data.replace(str(sys.version_info[:2]).encode(), b"(2, 7)")
            new.writestr(entry, data)

    done = run("--version", pyz=other, SHIV_ROOT=str(tmp_path / "cache"))

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"cortex: this file was built for Python 2.7, and {sys.executable} is "
        f"{sys.version.split()[0]}: run it with python2.7\n"
    )


def test_nothing_of_the_building_host_is_in_it(built: Built) -> None:
    places = {str(built.checkout), f"{tempfile.gettempdir()}/cortex-zipapp-"}
    if sys.prefix != sys.base_prefix:
        places.add(sys.prefix)

    with zipfile.ZipFile(built.pyz) as archive:
        found = [
            (name, place)
            for name in archive.namelist()
            for place in places
            if place.encode() in archive.read(name)
        ]

    assert found == []


def test_leftovers_are_pruned_and_metadata_says_so(built: Built) -> None:
    with zipfile.ZipFile(built.pyz) as archive:
        names = archive.namelist()
        records = [name for name in names if name.endswith(".dist-info/RECORD")]
        rows = [row for name in records for row in archive.read(name).decode().splitlines()]
    leftovers = ("/bin/", "/tests/", "/__pycache__/", ".pyc", ".pyi", "/direct_url.json")

    assert [name for name in names if any(part in f"/{name}" for part in leftovers)] == []
    assert len(records) == len(built.figures["packages"])
    assert [row for row in rows if f"site-packages/{row.split(',')[0]}" not in names] == []


def test_modes_do_not_depend_on_the_umask(built: Built) -> None:
    with zipfile.ZipFile(built.pyz) as archive:
        modes = {
            entry.external_attr >> 16 & 0o777
            for entry in archive.infolist()
            if entry.filename.startswith("site-packages/")
        }

    assert modes <= {0o644, 0o755}


def test_a_plugin_beside_the_file_is_found(run: Run, tmp_path: Path) -> None:
    package = tmp_path / "plugins" / "cortex_demo-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: cortex-demo\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[cortex]\ndemo = cortex_demo\n")
    (tmp_path / "plugins" / "cortex_demo.py").write_text(PLUGIN)
    (tmp_path / "models.toml").write_text("")
    config = tmp_path / "cortex.toml"
    config.write_text('[plugins]\ndirectories = ["plugins"]\n')

    done = run(
        "plugins", "--config", str(config), "--json", cwd=Path(os.sep), CORTEX_PLUGINS="demo"
    )

    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["failures"] == []
    (demo,) = (plugin for plugin in found["plugins"] if plugin["name"] == "demo")
    assert demo["distribution"] == "cortex-demo"
    assert [(o["kind"], o["name"]) for o in demo["offers"]] == [("routing strategy", "darts")]


def test_every_built_in_plugin_is_in_the_file(run: Run) -> None:
    from cortex.plugins import BUILTINS

    found = json.loads(run("plugins", "--json").stdout)

    assert [plugin["name"] for plugin in found["plugins"]] == list(BUILTINS)


def test_a_neuron_without_torch_names_the_interpreter_and_how_to_install_it(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "neuron.toml").write_text('listen = "127.0.0.1:0"\n')
    bare = (sys.executable, "-S")  # no site-packages of the host

    done = run("neuron", "--config", "neuron.toml", python=bare)

    assert done.returncode == 2
    assert "torch" in done.stderr
    assert sys.executable in done.stderr
