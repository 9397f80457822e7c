"""``cortex keys``: what it makes opens the gateway, and what it revokes does not."""

from __future__ import annotations

import json
import re
import tomllib

import pytest

from cortex.__main__ import main
from cortex.config.load import load_gateway
from cortex.fleet.principal import digest


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a working directory with a cortex.toml."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    (place / "models.toml").write_text("")
    (place / "cortex.toml").write_text("# mine\n[gateway]\n")
    return place


def keys(folder):
    return load_gateway(folder / "cortex.toml")[0].auth.keys


def test_a_new_key_is_printed_once_and_only_its_digest_is_kept(folder, capsys):
    assert main(["keys", "new", "zed"]) == 0

    said = capsys.readouterr()
    [secret] = said.out.splitlines()
    assert re.fullmatch(r"sk-cortex-[\w-]{43}", secret)
    assert (
        "cortex.toml: zed is added; a running gateway goes by it after `cortex reload`" in said.err
    )
    assert "who has no key is served too, as anonymous" in said.err
    text = (folder / "cortex.toml").read_text()
    assert secret not in text
    assert (
        text == f'# mine\n[gateway]\n\n[[auth.keys]]\nname = "zed"\nsha256 = "{digest(secret)}"\n'
    )


def test_two_keys_are_never_the_same(folder, capsys):
    main(["keys", "new", "a"])
    main(["keys", "new", "b"])
    assert len({key.sha256 for key in keys(folder)}) == 2


def test_every_limit_can_be_given(folder, capsys):
    options = "--admin --max-concurrency 1 --requests-per-minute 2 --tokens-per-minute 3"
    options += " --budget-tokens 4 --budget-days 5 --models org/* m"
    assert main(["keys", "new", "zed", *options.split(), "--json"]) == 0

    said = json.loads(capsys.readouterr().out)
    [key] = keys(folder)
    assert said == {
        "name": "zed",
        "key": said["key"],
        "sha256": digest(said["key"]),
        "file": "cortex.toml",
    }
    assert (key.sha256, key.admin, key.models) == (said["sha256"], True, ("org/*", "m"))
    assert (key.max_concurrency, key.requests_per_minute, key.tokens_per_minute) == (1, 2, 3)
    assert (key.budget_tokens, key.budget_days) == (4, 5)


@pytest.mark.parametrize("more", [["--print"], []])
def test_without_a_file_to_write_what_belongs_in_it_is_printed(folder, capsys, more):
    if not more:
        (folder / "cortex.toml").unlink()
    assert main(["keys", "new", "zed", *more]) == 0

    secret, table = capsys.readouterr().out.split("\n", 1)
    assert tomllib.loads(table)["auth"]["keys"] == [{"name": "zed", "sha256": digest(secret)}]
    assert not more or keys(folder) == ()


def test_keys_are_listed_without_their_secrets(folder, capsys):
    main(["keys", "new", "zed", "--admin", "--max-concurrency", "8", "--budget-tokens", "1000"])
    secret = capsys.readouterr().out.strip()

    assert main(["keys", "list"]) == 0
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert shown[1] == f"zed (admin) * 8 at once, 1000 tokens in 30 days {digest(secret)[:8]}"
    assert main(["keys", "list", "--json"]) == 0
    [listed] = json.loads(capsys.readouterr().out)
    assert (listed["name"], listed["max_concurrency"]) == ("zed", 8)


def test_where_there_is_no_key_that_is_said(folder, capsys):
    assert main(["keys", "list"]) == 0
    assert capsys.readouterr().out == "no key is configured: everybody may do everything\n"


def test_a_revoked_key_is_gone_and_the_others_stay(folder, capsys):
    main(["keys", "new", "a"])
    main(["keys", "new", "b"])
    capsys.readouterr()

    assert main(["keys", "revoke", "a"]) == 0
    assert capsys.readouterr().out == "revoked: a\n"
    assert [key.name for key in keys(folder)] == ["b"]
    assert main(["keys", "revoke", "b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "b", "file": "cortex.toml"}
    assert keys(folder) == ()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["new", "zed"], "cortex.toml: auth.keys[1].name: 'zed' is taken by another key"),
        (["new", "anonymous"], "cortex.toml: auth.keys[1].name: 'anonymous' is who has no key"),
        (["new", "x\ny"], "the new key: name: expected 1 to 128 characters of ASCII"),
        (["new", "x", "--max-concurrency", "0"], "the new key: max_concurrency: expected at least"),
        (["revoke", "zde"], "cortex.toml: no key is called 'zde' (did you mean 'zed'?)"),
        (["revoke", "zed"], "cortex.toml: zed is the only key, and auth.require wants one"),
        (["list", "--config", "no.toml"], "no.toml: no such file"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_changes_nothing(folder, capsys, args, message):
    main(["keys", "new", "zed"])
    text = (folder / "cortex.toml").read_text() + "[auth]\nrequire = true\n"
    (folder / "cortex.toml").write_text(text)
    capsys.readouterr()

    assert main(["keys", *args]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"cortex keys: {message}")
    assert (said.out, (folder / "cortex.toml").read_text()) == ("", text)


def test_without_a_file_nothing_is_listed(folder, capsys):
    (folder / "cortex.toml").unlink()
    assert main(["keys", "list"]) == 2
    assert capsys.readouterr().err == (
        "cortex keys: there is no ./cortex.toml (name one with --config)\n"
    )


USAGE = {
    "since": "2026-11-01",
    "usage": [
        {
            "principal": principal,
            "day": f"2026-11-0{day}",
            "model": model,
            "requests": 1,
            "prompt_tokens": 1000 * day,
            "completion_tokens": 5,
        }
        for principal, model, day in (("zed", "m", 1), ("zed", "m", 2), ("amy", "", 1))
    ],
}


def test_usage_is_summed_by_key_and_model(gateway, capsys):
    gateway.json("GET", "/api/v1/usage", USAGE)
    assert main(["keys", "usage", "--key", "k", "--days", "7"]) == 0

    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert shown == [
        "KEY MODEL REQUESTS PROMPT TOKENS ANSWER TOKENS",
        "amy - 1 1,000 5",
        "zed m 2 3,000 10",
    ]
    assert gateway.calls[-1].headers["authorization"] == "Bearer k"
    assert main(["keys", "usage", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == USAGE


def test_no_usage_is_said(gateway, capsys):
    gateway.json("GET", "/api/v1/usage", {"since": "2026-11-01", "usage": []})
    assert main(["keys", "usage"]) == 0
    assert capsys.readouterr().out == "nothing was used since 2026-11-01\n"


def test_a_key_that_is_no_admins_is_said(gateway, capsys):
    gateway.error("GET", "/api/v1/usage", 403, "permission_denied", "zed is no admin")
    assert main(["keys", "usage", "--key", "k"]) == 1
    assert "zed is no admin" in capsys.readouterr().err
