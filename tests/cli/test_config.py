"""``cortex config``: what is wrong, where, and what to do; what is in force, and who said it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import attrs
import pytest

from cortex.__main__ import main
from cortex.neuron.harnesses.torch import TorchOptions
from cortex.neuron.images.options import ImageOptions
from cortex.sources.hf import HfOptions

EXAMPLES = Path(__file__).parents[2] / "examples"
BROKEN = """\
[gateway]
lisen = "127.0.0.1:1"

[queue]
max_depth = "many"
"""
DOUBTFUL = """\
[[models]]
id = "org/a"
pinned_on = ["benji"]

[aliases]
small = "org/b"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Return a working directory with the examples."""
    here = tmp_path / "here"
    here.mkdir()
    for name in ("cortex.toml", "models.toml", "neuron.toml"):
        shutil.copy(EXAMPLES / name, here)
    monkeypatch.chdir(here)
    return here


def findings(capsys) -> list[dict]:
    return json.loads(capsys.readouterr().out)["findings"]


def sources(capsys) -> dict[str, tuple[object, str]]:
    [values] = json.loads(capsys.readouterr().out)["files"].values()
    return {value["key"]: (value["value"], value["source"]) for value in values}


def test_files_without_a_mistake_are_ok(folder, capsys):
    assert main(["config", "check"]) == 0
    assert capsys.readouterr().out == "ok: cortex.toml, models.toml, neuron.toml\n"


def test_every_mistake_is_said_with_its_line(folder, capsys):
    (folder / "cortex.toml").write_text(BROKEN)
    (folder / "models.toml").write_text("[[models]]\n")

    assert main(["config", "check", "cortex.toml"]) == 2

    lines = capsys.readouterr().out.splitlines()
    assert [line[:62] for line in lines] == [
        "cortex.toml:2: error: gateway.lisen: unknown key (did you mean",
        "cortex.toml:5: error: queue.max_depth: expected a whole number",
        "models.toml:1: error: models[0].id: missing",
    ]


def test_json_has_place_message_and_what_to_do(folder, capsys):
    (folder / "cortex.toml").write_text("[auth]\nrequire = true\n")

    assert main(["config", "check", "cortex.toml", "--json"]) == 2

    assert findings(capsys) == [
        {
            "state": "error",
            "file": "cortex.toml",
            "line": 2,
            "key": "auth.require",
            "message": "no key is configured, so nobody could be let in",
            "do": "cortex keys new NAME --admin",
        }
    ]


def test_the_line_of_what_is_no_toml_is_the_parsers(folder, capsys):
    (folder / "neuron.toml").write_text('listen = "a:1"\ntoken = \n')

    assert main(["config", "check", "neuron.toml", "--json"]) == 2

    [found] = findings(capsys)
    assert (found["line"], found["file"]) == (2, "neuron.toml")


def test_what_only_the_start_would_tell_is_told(folder, capsys):
    (folder / "cortex.toml").write_text(
        '[routing]\nstrategy = "least-loadd"\n[gateway.tls]\ncert = "a.crt"\nkey = "a.key"\n'
    )
    (folder / "neuron.toml").write_text("[harness.torch]\nmax_sequence = 1\n")

    assert main(["config", "check", "--json"]) == 2

    found = findings(capsys)
    assert [(f["file"], f["line"], f["key"]) for f in found] == [
        ("cortex.toml", 2, "routing.strategy"),
        ("cortex.toml", 4, "gateway.tls.cert"),
        ("neuron.toml", 2, "harness.torch.max_sequence"),
    ]
    assert found[0]["do"] == "did you mean 'least-loaded'?"


def test_what_is_likely_not_meant_is_a_warning_and_no_failure(folder, capsys):
    (folder / "models.toml").write_text(DOUBTFUL)
    (folder / "cortex.toml").write_text('[[neurons]]\nname = "benjy"\nendpoint = "http://b:1"\n')

    assert main(["config", "check", "cortex.toml", "models.toml", "--json"]) == 0

    found = findings(capsys)
    assert [(f["state"], f["line"], f["key"]) for f in found][:2] == [
        ("warning", 6, "aliases.small"),
        ("warning", 3, "models[0].pinned_on"),
    ]
    assert found[1]["do"] == "did you mean 'benjy'?"
    assert len(found) == 2  # once each, though the catalogue was named twice


@pytest.mark.parametrize(
    ("text", "key"),
    [('token = "x"\nlisten = 1\n', "listen"), ("[routing]\nstrategy = 1\n", "routing.strategy")],
)
def test_a_file_is_taken_for_what_it_looks_like(folder, capsys, text, key):
    (folder / "mine.toml").write_text(text)

    assert main(["config", "check", "mine.toml", "--json"]) == 2

    assert [f["key"] for f in findings(capsys)] == [key]


def test_without_a_file_there_is_nothing_to_check(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["config", "check"]) == 2
    assert "there is neither ./cortex.toml nor ./neuron.toml" in capsys.readouterr().err


def test_values_are_shown_with_who_said_them(folder, capsys, monkeypatch):
    monkeypatch.setenv("CORTEX_QUEUE__MAX_DEPTH", "7")

    assert main(["config", "show", "cortex.toml"]) == 0

    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert 'routing.strategy "least-loaded" cortex.toml' in rows
    assert "queue.max_depth 7 CORTEX_QUEUE__MAX_DEPTH" in rows
    assert "gateway.dialects - default" in rows
    assert "plugins.only [] CORTEX_PLUGINS" in rows
    assert "models.toml" in rows


def test_every_option_of_harnesses_and_sources_is_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEURON_HARNESS__TORCH__IMAGES__MAX_MB", "7")
    (tmp_path / "neuron.toml").write_text("[harness.torch]\nthreads = 2\n")

    assert main(["config", "show", "--json"]) == 0

    said = sources(capsys)
    assert said["harness.torch.threads"] == (2, "neuron.toml")
    assert said["harness.torch.images.max_mb"] == (7, "NEURON_HARNESS__TORCH__IMAGES__MAX_MB")
    for table, options in (
        ("harness.torch", TorchOptions),
        ("harness.torch.images", ImageOptions),
        ("sources.hf", HfOptions),
    ):
        for field in attrs.fields(options):
            if field.name not in ("threads", "max_mb", "images"):
                assert said[f"{table}.{field.name}"] == (field.default, "default")


def test_options_of_what_is_not_run_are_shown_only_if_they_are_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = 'harnesses = ["echo"]\n[harness.torch]\nthreads = 2\n'
    (tmp_path / "neuron.toml").write_text(text)

    assert main(["config", "show", "--json"]) == 0

    shown = [key for key in sources(capsys) if key.startswith("harness.")]
    assert "harness.echo.delay_s" in shown
    assert [key for key in shown if "torch" in key] == ["harness.torch.threads"]


def test_an_option_that_cannot_be_used_is_not_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "neuron.toml").write_text("[harness.torch]\nthread = 2\n")

    assert main(["config", "show"]) == 2
    assert "neuron.toml: harness.torch: thread: unknown key" in capsys.readouterr().err


def test_a_table_out_of_a_variable_is_that_variables(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NEURON_HARNESS", "{echo = {delay_s = 1}}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")
    monkeypatch.chdir(tmp_path)

    assert main(["config", "show", "--role", "neuron", "--json"]) == 0

    said = sources(capsys)
    assert said["harness.echo.delay_s"] == (1, "NEURON_HARNESS")
    assert said["harness.echo.load_s"] == (0, "default")
    assert said["tracing.endpoint"] == ("http://c:4318", "OTEL_EXPORTER_OTLP_ENDPOINT")
    assert said["listen"] == ("0.0.0.0:13131", "default")


def test_secrets_are_hidden_wherever_they_are(folder, capsys):
    (folder / "neuron.toml").write_text(
        'token = "hide-a"\n[sources.mine]\napi_key = "hide-b"\nkey_file = "open"\n'
        '[tracing]\nendpoint = "http://me:hide-c@h:1"\n'
    )
    (folder / "cortex.toml").write_text(
        '[[neurons]]\nname = "a"\nendpoint = "http://h:1"\ntoken = "hide-d"\n'
        '[auth.options.mine]\nword = "hide-e"\n'
    )

    assert main(["config", "show", "--json"]) == 0

    said = capsys.readouterr().out
    assert "hide-" not in said
    assert "http://***@h:1" in said
    assert '"open"' in said


def test_what_cannot_be_used_is_not_shown(folder, capsys):
    (folder / "cortex.toml").write_text(BROKEN)
    assert main(["config", "show"]) == 2
    assert "cortex config: cortex.toml: gateway.lisen: unknown key" in capsys.readouterr().err


def test_plugins_that_are_left_out_are_warnings(folder, capsys, monkeypatch):
    info = folder / "installed" / "bad-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cortex]\nbad = no_such_module_of_bad\n")
    monkeypatch.setenv("CORTEX_PLUGINS", "bad")
    for name in ("cortex.toml", "neuron.toml"):
        (folder / name).write_text('[plugins]\ndirectories = ["installed", "elsewhere"]\n')

        assert main(["config", "check", name, "--json"]) == 0

        elsewhere, bad = findings(capsys)
        assert (elsewhere["state"], elsewhere["line"]) == ("warning", 2)
        assert elsewhere["message"] == "no folder elsewhere"
        assert bad["message"].startswith("plugin 'bad' (bad): ModuleNotFoundError: ")
