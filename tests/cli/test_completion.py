"""``cortex completion``: the shells really complete, out of what is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from cortex.__main__ import COMMANDS, main
from tests.cli.conftest import REPOSITORY

BASH = """
source <(cortex completion bash)
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9
read -ra COMP_WORDS <<<"$1"
complete -p cortex >/dev/null || exit 3
$(complete -p cortex | sed 's/.*-F \\([^ ]*\\).*/\\1/') cortex
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """Return what runs a shell, where `cortex` is this checkout's, and returns what it prints."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "cortex"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m cortex "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))

    def run(*command: str) -> list[str]:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=25)
        return [line.strip() for line in done.stdout.splitlines() if line.strip()]

    return run


def in_bash(shell, line: str) -> set[str]:
    return set(shell("bash", "--norc", "-c", BASH, "bash", line))


def test_bash_completes_commands(shell):
    assert in_bash(shell, "cortex ") == {*COMMANDS, "--help", "--version"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cortex mod", {"models"}),
        ("cortex models unl", {"unload"}),
        ("cortex launch c", {"claude", "codex"}),
        ("cortex bench --co", {"--concurrency", "--compare"}),
        ("cortex completion f", {"fish"}),
        ("cortex config check --role ", {"gateway", "neuron"}),
        ("cortex models load --node n --jso", {"--json"}),
    ],
)
def test_bash_completes_subcommands_options_and_choices(shell, nowhere, line, expected):
    assert in_bash(shell, line) == expected


def test_bash_completes_the_gateways_models_and_nodes(shell, gateway, fleet):
    gateway.json("GET", "/v1/models", {"data": [{"id": "org/m"}, {"id": "fast"}]})
    gateway.json("GET", "/api/v1/fleet", fleet)
    assert in_bash(shell, "cortex models load or") == {"org/m"}
    assert in_bash(shell, "cortex chat -m fa") == {"fast"}
    assert in_bash(shell, "cortex nodes drain bea") == {"beast"}


def test_bash_completes_files_where_a_file_is_meant(shell, tmp_path):
    (tmp_path / "neuron.toml").touch()
    line = f"cortex config check {tmp_path}/ne"
    assert in_bash(shell, line) == {f"{tmp_path}/neuron.toml"}


def test_without_a_gateway_no_error_gets_between_the_words(shell, nowhere):
    assert in_bash(shell, "cortex models load or") == set()


@pytest.mark.skipif(not shutil.which("fish"), reason="there is no fish here")
def test_fish_completes(shell):
    found = shell("fish", "-c", 'cortex completion fish | source; complete -C "cortex launch c"')
    assert [line.split("\t")[0] for line in found] == ["claude", "codex"]


@pytest.mark.skipif(not shutil.which("zsh"), reason="there is no zsh here")
def test_zsh_completes(shell):
    script = """
    autoload -Uz compinit is-at-least && compinit -u -D
    source <(cortex completion zsh)
    _describe() { shift; print -l -- ${(P)1} }
    BUFFER='cortex launch c' CURSOR=15 words=(cortex launch c)
    _python_argcomplete
    """
    found = shell("zsh", "-f", "-c", script)
    assert [line.split(":")[0] for line in found] == ["claude", "codex"]


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_a_script_is_for_the_name_it_is_given(name, capsys):
    assert main(["completion", name, "--name", "ctx", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["shell"] == name
    assert "ctx" in said["script"]
    assert "cortex" not in said["script"]


def test_a_shell_we_have_no_script_for_is_refused(capsys):
    with pytest.raises(SystemExit) as left:
        main(["completion", "tcsh"])
    assert left.value.code == 2
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err


def test_the_script_is_whole(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=25)
