"""``cortex launch``: each client gets the gateway, a model and a key, and nothing of its user's."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cortex.__main__ import main

PROGRAMS = ("claude", "codex", "opencode", "aider", "zed")
FAKE = """#!{python}
import json, os, sys
print(json.dumps({{"arguments": sys.argv[1:], "env": dict(os.environ)}}))
raise SystemExit(7)
"""


def row(name: str, context: int, *capabilities: str, loaded: bool = True) -> dict:
    limit = {"context": context, "output": context}
    found = {"id": name, "loaded": loaded, "capabilities": ["text", *capabilities]}
    return {**found, "limit": limit}


ROWS = [
    row("org/small", 8192, "tools"),
    row("org/long", 32768, "tools", "reasoning"),
    row("org/longest", 131072),
    row("org/cold", 262144, "tools", loaded=False),
    {"id": "org/embed", "loaded": True, "capabilities": ["embedding"]},
    {"id": "fast", "alias_of": "org/small"},
]


@pytest.fixture
def models(gateway):
    gateway.json("GET", "/v1/models", {"data": ROWS})
    return gateway


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Path:
    """Return a folder with programs that say how they were started: all there is on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in PROGRAMS:
        program = folder / name
        program.write_text(FAKE.format(python=sys.executable))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def told(capsys, *args: str) -> dict:
    assert main(["launch", *args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_client_is_started_in_our_place_with_what_stands_behind_the_dashes(
    models, programs, command, name
):
    done = command("launch", name, "--key", "k", "--", "-p", "say hi", ANTHROPIC_API_KEY="vendor's")

    assert done.returncode == 7, done.stderr
    said = json.loads(done.stdout)
    assert said["arguments"][-2:] == ["-p", "say hi"]
    assert f"{name}: org/long at {models.url}, with 32768 tokens" in done.stderr
    assert "k" in said["env"].values()
    if name == "claude":
        assert "ANTHROPIC_API_KEY" not in said["env"]


def test_claude_code_gets_our_names_and_no_line_that_spoils_the_cache(models, capsys):
    said = told(capsys, "claude", "--key", "k")

    env = said["env"]
    assert said["command"] == ["claude", "--model", "org/long"]
    assert env["ANTHROPIC_BASE_URL"] == models.url
    assert env["ANTHROPIC_AUTH_TOKEN"] == "k"
    assert env["CLAUDE_CODE_ATTRIBUTION_HEADER"] == "0"
    assert env["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == "32768"
    assert {v for n, v in env.items() if n.endswith("_MODEL")} == {"org/long"}
    assert "ANTHROPIC_API_KEY" in said["unset"]


def test_codex_gets_options_that_are_toml(models, capsys):
    said = told(capsys, "codex", "--model", "fast")

    assert said["command"][:3] == ["codex", "-m", "fast"]
    options = said["command"][4::2]
    assert tomllib.loads("\n".join(options)) == {
        "model_provider": "cortex",
        "model_context_window": 8192,
        "model_providers": {
            "cortex": {
                "name": "cortex",
                "base_url": f"{models.url}/v1",
                "wire_api": "responses",
                "env_key": "CORTEX_KEY",
            }
        },
    }
    assert said["env"] == {"CORTEX_KEY": "none"}


def test_opencode_gets_a_provider_and_the_key_apart(models, capsys):
    said = told(capsys, "opencode", "--key", "secret")

    config = json.loads(said["env"]["OPENCODE_CONFIG_CONTENT"])
    assert config["model"] == config["small_model"] == "cortex/org/long"
    provider = config["provider"]["cortex"]
    assert provider["options"] == {"baseURL": f"{models.url}/v1", "apiKey": "{env:CORTEX_KEY}"}
    limit = provider["models"]["org/long"]["limit"]
    assert limit == {"context": 32768, "output": 8192}
    assert said["env"]["CORTEX_KEY"] == "secret"


def test_aider_gets_the_window_in_a_file_of_ours_and_a_map_that_stays(models, capsys, tmp_path):
    said = told(capsys, "aider")

    assert said["command"][:3] == ["aider", "--model", "openai/org/long"]
    [(place, text)] = said["files"].items()
    assert Path(place).is_relative_to(tmp_path / "cache" / "launch")
    assert json.loads(text)["openai/org/long"]["max_input_tokens"] == 32768
    assert said["env"]["AIDER_MAP_REFRESH"] == "files"
    assert said["env"]["OPENAI_API_BASE"] == f"{models.url}/v1"


def test_what_an_aider_user_has_chosen_for_the_map_stays(models, programs, command):
    done = command("launch", "aider", AIDER_MAP_REFRESH="manual")
    assert json.loads(done.stdout)["env"]["AIDER_MAP_REFRESH"] == "manual"


def test_zed_gets_a_profile_of_its_own_and_the_users_settings_stay(
    models, programs, command, tmp_path
):
    mine = tmp_path / ".config" / "zed" / "settings.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("// mine")

    done = command("launch", "zed")

    said = json.loads(done.stdout)
    profile = tmp_path / "cache" / "launch" / "zed"
    assert said["arguments"] == ["--user-data-dir", str(profile)]
    settings = json.loads((profile / "config" / "settings.json").read_text())
    server = settings["language_models"]["openai_compatible"]["cortex"]
    assert server["api_url"] == f"{models.url}/v1"
    assert [model["name"] for model in server["available_models"]] == ["org/long"]
    assert mine.read_text() == "// mine"


def test_what_is_printed_does_the_same_in_a_shell(models, programs, capsys):
    assert main(["launch", "aider", "--key", "it's", "--print", "--", "a b"]) == 0

    script = capsys.readouterr().out
    said = subprocess.run(
        ["/bin/sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=25,
        env={"PATH": f"{programs}:/usr/bin:/bin"},
    )
    started = json.loads(said.stdout)
    assert started["arguments"][-1] == "a b"
    assert started["env"]["OPENAI_API_KEY"] == "it's"
    place = started["arguments"][started["arguments"].index("--model-metadata-file") + 1]
    assert "openai/org/long" in Path(place).read_text()


def test_the_best_model_is_one_that_is_loaded_and_uses_tools_with_most_context(gateway, capsys):
    for kept, expected in ((ROWS, "org/long"), (ROWS[2:], "org/longest"), (ROWS[3:4], "org/cold")):
        gateway.json("GET", "/v1/models", {"data": kept})
        assert told(capsys, "claude")["model"] == expected


def test_a_model_whose_window_nobody_knows_is_loaded_first(gateway, programs, command):
    gateway.json("GET", "/v1/models", {"data": [row("org/cold", 0, loaded=False)]})

    def load(_):
        gateway.json("GET", "/v1/models", {"data": [row("org/cold", 4096)]})
        return 200, {}, [b'{"status": "loaded"}']

    gateway.on("POST", "/api/v1/models/org%2Fcold/load", load)

    done = command("launch", "claude")

    assert json.loads(done.stdout)["env"]["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == "4096"


def test_a_program_that_is_not_there_is_told_with_how_to_get_it(
    models, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["launch", "zed"]) == 1
    assert capsys.readouterr().err == (
        "cortex launch: zed is not installed: there is no zed or zeditor or zedit on PATH"
        " (see https://zed.dev/download; or see with --print how to start it elsewhere)\n"
    )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["claude", "--model", "org/lon"], "no model 'org/lon' (did you mean 'org/long'?)"),
        (["codex", "--gateway", "h:1"], "expected http://host:port as gateway, got 'h:1'"),
    ],
)
def test_what_cannot_be_launched_is_said(models, capsys, args, said):
    assert main(["launch", *args]) == 1
    assert said in capsys.readouterr().err


def test_without_a_model_nothing_is_launched(gateway, capsys):
    gateway.json("GET", "/v1/models", {"data": []})
    assert main(["launch", "codex"]) == 1
    assert "the gateway knows no model to talk to" in capsys.readouterr().err
