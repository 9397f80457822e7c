"""The builder: budgets, the same bytes everywhere, and what it says when it cannot build."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

import attrs
import pytest

from cortex import zipapp
from tests.zipapp.builds import ROOT, Built, build, copy_sources

pytestmark = [pytest.mark.zipapp, pytest.mark.timeout(600), pytest.mark.xdist_group("zipapp")]

SHIV_TOML = """
[build]
entry_point = "cortex.__main__:main"
python = "/usr/bin/env python3"
compile_pyc = true
reproducible = true

[flavours.slim]
output = "dist/cortex.pyz"
max_bytes = 1000
max_help_ms = 1
"""
FIGURES = zipapp.Figures(
    output="x.pyz",
    python="3.11",
    sha256="",
    size_bytes=5_000_000,
    entries=1300,
    help_cpu_ms=70,
    packages={},
)
FLAVOUR = zipapp.Flavour(output=Path("x.pyz"), max_bytes=10_000_000, max_help_ms=150)
Elsewhere = tuple["subprocess.CompletedProcess[str]", Path]
HUGE = attrs.evolve(FLAVOUR, max_bytes=2**40)


def test_slim_keeps_the_budgets_that_were_promised() -> None:
    config = zipapp.load(ROOT / "shiv.toml")

    assert config.flavours["slim"].max_bytes <= 10_000_000
    assert config.flavours["slim"].max_help_ms <= 150


def test_a_line_for_each_step_then_the_figures(built: Built) -> None:
    *steps, summary, _ = built.lines

    assert [re.sub(r" +[\d.]+ s$", "", step) for step in steps] == [
        "wheel",
        f"stage cortex-fleet {built.figures['packages']['cortex-fleet']}",
        "stage dependencies",
        "prune",
        "shiv",
        "start",
    ]
    assert summary.startswith(f"{built.pyz}: {built.pyz.stat().st_size:,} bytes, ")
    assert built.figures["ok"] is True
    assert built.figures["size_bytes"] == built.pyz.stat().st_size
    assert built.figures["first_start_ms"] > built.figures["help_ms"] > 0
    assert built.figures["help_cpu_ms"] > 0


@pytest.fixture(scope="module")
def elsewhere(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    """Build in another checkout, with another umask, and with budgets that nothing keeps."""
    where = tmp_path_factory.mktemp("elsewhere") / "a longer way" / "to the checkout"
    checkout = copy_sources(built.checkout, where)
    table = (checkout / "shiv.toml").read_text()
    table = re.sub(r"max_bytes = [\d_]+", "max_bytes = 1000", table)
    (checkout / "shiv.toml").write_text(re.sub(r"max_help_ms = \d+", "max_help_ms = 1", table))
    last = checkout / "dist" / "cortex.pyz"
    last.parent.mkdir()
    last.write_text("of the last build")
    return build(checkout, "slim", "--strict", "--json", umask=0o077), last


def test_another_checkout_gives_the_same_bytes(built: Built, elsewhere: Elsewhere) -> None:
    done, _ = elsewhere
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["sha256"] == built.figures["sha256"]
    assert figures["sha256"] == hashlib.sha256(built.pyz.read_bytes()).hexdigest()
    assert figures["size_bytes"] == built.pyz.stat().st_size


def test_a_file_over_its_budgets_is_not_kept(elsewhere: Elsewhere) -> None:
    done, last = elsewhere
    assert done.returncode == 1
    assert not last.exists()
    size, help_ms = done.stderr.splitlines()
    assert re.fullmatch(rf".*{last} is not kept: [\d,]+ bytes, max_bytes is 1,000", size)
    assert re.fullmatch(rf".*{last} is not kept: \d+ ms for --help, max_help_ms is 1", help_ms)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["ok"] is False
    assert len(figures["broken"]) == 2


@pytest.mark.parametrize(
    ("changes", "flavour", "broken"),
    [
        ({}, FLAVOUR, []),
        ({"size_bytes": 10_000_000, "help_cpu_ms": 150.0, "entries": 65_535}, FLAVOUR, []),
        ({"size_bytes": 10_000_001}, FLAVOUR, ["10,000,001 bytes, max_bytes is 10,000,000"]),
        ({"entries": 65_536}, HUGE, ["65,536 entries, Python 3.12 starts at most 65,535"]),
        ({"size_bytes": 2**31 - 1}, HUGE, []),
        (
            {"size_bytes": 2**31},
            HUGE,
            ["2,147,483,648 bytes, Python 3.12 starts at most 2,147,483,647"],
        ),
    ],
)
def test_what_breaks_a_budget(
    changes: dict[str, float], flavour: zipapp.Flavour, broken: list[str]
) -> None:
    assert attrs.evolve(FIGURES, **changes).broken(flavour) == broken


def test_what_starts_slowly_is_told() -> None:
    assert attrs.evolve(FIGURES, help_cpu_ms=150.0).slow(FLAVOUR) == []
    (said,) = attrs.evolve(FIGURES, help_cpu_ms=151.0).slow(FLAVOUR)
    assert said == "151 ms for --help, max_help_ms is 150"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "max_bytes",
            "max_byte",
            "flavours['slim'].max_byte: unknown key (did you mean 'max_bytes'?)",
        ),
        ("= 1000", '= "10 MB"', "flavours['slim'].max_bytes: expected a whole number, got '10 MB'"),
        ("max_help_ms = 1\n", "", "flavours['slim'].max_help_ms: missing"),
        ("python = ", "pithon = ", "build.pithon: unknown key (did you mean 'python'?)"),
        ("flavours.slim", "flavours.cpu", "flavours: no 'slim' (known: cpu)"),
        ("[build]", "[build", "(at line 2, column 7)"),
    ],
)
def test_a_wrong_shiv_toml_is_named_with_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    (tmp_path / "shiv.toml").write_text(SHIV_TOML.replace(old, new, 1))

    code = zipapp.main(["slim", "--config", str(tmp_path / "shiv.toml")])

    message = capsys.readouterr().err
    assert code == 2
    assert "shiv.toml: " in message
    assert said in message


def test_an_extra_that_pyproject_lacks_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shiv.toml").write_text(SHIV_TOML + 'extras = ["tourch"]\n')
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())

    code = zipapp.main(["slim", "--config", str(tmp_path / "shiv.toml")])

    message = capsys.readouterr().err
    assert code == 2
    assert "pyproject.toml: no extra is called 'tourch' (did you mean 'torch'?)" in message


def test_without_a_shiv_toml_the_path_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = zipapp.main(["slim", "--config", str(tmp_path / "shiv.toml")])

    assert code == 2
    assert str(tmp_path / "shiv.toml") in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["shiv", "hatchling"])
def test_a_missing_tool_is_named_with_what_installs_it(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = zipapp.find_spec
    monkeypatch.setattr(zipapp, "find_spec", lambda name: None if name == missing else find(name))

    code = zipapp.main(["slim"])

    message = capsys.readouterr().err
    assert code == 2
    assert f"has no module {missing} (`pip install --group build`" in message
    assert message.count("\n") == 1


def test_a_missing_strip_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(zipapp.shutil, "which", {}.get)

    code = zipapp.main(["slim"])

    assert code == 2
    assert "build.strip: no program strip on PATH (install binutils)" in capsys.readouterr().err


def test_a_step_that_fails_ends_the_build_with_its_last_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shiv.toml").write_text(SHIV_TOML)
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())

    code = zipapp.main(["slim", "--config", str(tmp_path / "shiv.toml")])

    said = capsys.readouterr()
    assert code == 1
    assert "-m pip wheel: exit status 1" in said.err
    assert "file does not exist: cortex/__init__.py" in said.err
    assert not (tmp_path / "dist").exists()


def test_the_date_is_the_last_commits(tmp_path: Path) -> None:
    who = {
        f"GIT_{role}_{what}": "x" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    env = {**os.environ, **who, "GIT_COMMITTER_DATE": "1700000000 +0000"}
    assert zipapp.source_date(tmp_path) == zipapp.FIXED_DATE

    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], env=env, check=True, timeout=30)

    assert zipapp.source_date(tmp_path) == 1_700_000_000
