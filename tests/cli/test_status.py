"""``cortex status`` against a fleet with everything in it, and against none."""

from __future__ import annotations

import json

import attrs
import msgspec
import pytest

from cortex.__main__ import main
from cortex.cli.loads import under_way
from cortex.fleet.node import Fleet, LoadJob

PATH = "/api/v1/fleet"


def rows(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_nodes_devices_models_loads_and_trouble_are_shown(gateway, fleet, capsys):
    gateway.json("GET", PATH, fleet)

    assert main(["status"]) == 0

    shown = rows(capsys.readouterr().out)
    assert shown[0] == f"cortex 0.1.0 at {gateway.url}, up 1h 2m, 2 of 3 nodes healthy"
    for row in (
        "beast ok 0.1.0 3d 4h http://beast.internal:13131",
        "benjy degraded, warming 1/3 0.1.0 5m 5s http://benjy.internal:13131",
        "attic unreachable http://attic.internal:13131",
        "benjy cuda:0 NVIDIA RTX A4000 ━━━╸ 3.6 / 16.0 GiB 23% recovering",
        "Qwen/Qwen3-8B loaded beast:0 17.6 3 2 87 42% 0%",
        "nomic/embed unservable benjy:0 0 0",
        "Qwen/Qwen3-Coder-30B-A3B-Instruct beast fetching ━━━━━━╸ 43% 1m 20s 4",
        "not loaded: Qwen/Qwen3-1.7B, google/gemma-3-27b-it",
        "attic: connection refused",
        "benjy: org/typo could not be loaded: no such repository",
        "benjy: nomic/embed cannot answer: its worker is restarting",
        "benjy: m runs without batching: its attention has sinks",
    ):
        assert row in shown
    assert sum("without batching" in row for row in shown) == 1
    assert any("beast cuda:0" in r and "18.2 / 24.0 GiB 76% 97% 71 °C ok" in r for r in shown)


@pytest.mark.parametrize(
    ("reason", "is_told"),
    [("NVMLError_LibraryNotFound: NVML Shared Library Not Found", False), ("no permission", True)],
)
def test_a_node_without_a_driver_is_a_cpu_node_by_choice(gateway, fleet, capsys, reason, is_told):
    benjy = fleet.nodes[1]
    found = attrs.evolve(benjy.discovery, cuda_unavailable_reason=reason)
    nodes = (fleet.nodes[0], attrs.evolve(benjy, discovery=found), *fleet.nodes[2:])
    gateway.json("GET", PATH, attrs.evolve(fleet, nodes=nodes))

    assert main(["status"]) == 0

    assert (f"benjy: no CUDA: {reason}" in rows(capsys.readouterr().out)) is is_told


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal(gateway, fleet, capsys, monkeypatch, columns):
    gateway.json("GET", PATH, fleet)
    monkeypatch.setenv("COLUMNS", str(columns))

    assert main(["status"]) == 0

    assert max(map(len, capsys.readouterr().out.splitlines())) <= columns


def test_at_80_columns_every_device_and_model_keeps_to_one_line(
    gateway, fleet, capsys, monkeypatch
):
    gateway.json("GET", PATH, fleet)
    monkeypatch.setenv("COLUMNS", "80")

    main(["status"])

    shown = rows(capsys.readouterr().out)
    assert "beast cuda:0 RTX 4090 18.2 / 24.0 GiB 76% 97% 71 °C ok" in shown
    assert "Qwen/Qwen3-Coder-30B-A3B-Instruct beast fetching 43% 1m 20s 4" in shown


def test_json_is_what_the_gateway_said(gateway, fleet, capsys):
    gateway.json("GET", PATH, fleet)

    assert main(["status", "--json"]) == 0

    assert json.loads(capsys.readouterr().out) == json.loads(msgspec.json.encode(fleet))


def test_colours_are_for_terminals_that_want_them(gateway, fleet, capsys, monkeypatch):
    gateway.json("GET", PATH, fleet)
    main(["status"])
    assert "\x1b" not in capsys.readouterr().out

    monkeypatch.setenv("FORCE_COLOR", "1")
    main(["status"])
    assert "\x1b[32mok" in capsys.readouterr().out

    monkeypatch.setenv("NO_COLOR", "1")
    main(["status"])
    assert "\x1b[32m" not in capsys.readouterr().out


def test_nothing_loaded_says_how_to_load(gateway, fleet, capsys):
    idle = [attrs.evolve(node, models=()) for node in fleet.nodes]
    gateway.json("GET", PATH, attrs.evolve(fleet, nodes=tuple(idle), loads=()))

    assert main(["status"]) == 0

    out = capsys.readouterr().out
    assert "no model is loaded; load one with: cortex models load MODEL" in out
    assert "not loaded: Qwen/Qwen3-8B," in out


def test_no_node_says_where_to_add_one(gateway, capsys):
    gateway.json("GET", PATH, Fleet(version="0.1.0", uptime_s=1))

    assert main(["status"]) == 0

    assert "no node is configured: add [[neurons]] to cortex.toml" in capsys.readouterr().out


def test_markup_in_names_is_text(gateway, fleet, capsys):
    odd = attrs.evolve(fleet.nodes[2], name="[red]x", error="[/bold] [link")
    gateway.json("GET", PATH, attrs.evolve(fleet, nodes=(odd,)))

    assert main(["status"]) == 0

    assert "[red]x: [/bold] [link" in capsys.readouterr().out


def test_a_gateway_that_is_down_is_named_and_how_to_start_it(nowhere, capsys):
    assert main(["status"]) == 1

    said = capsys.readouterr().err
    assert said.startswith(f"cortex status: no gateway listens at {nowhere} (start it with: cortex")


def test_option_beats_environment_for_address_and_key(gateway, fleet, monkeypatch, capsys):
    gateway.json("GET", PATH, fleet)
    monkeypatch.setenv("CORTEX_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("CORTEX_KEY", "env")

    assert main(["status", "--gateway", gateway.url]) == 0
    assert main(["status", "--gateway", gateway.url, "--key", "own"]) == 0

    keys = [call.headers["authorization"] for call in gateway.calls]
    assert keys == ["Bearer env", "Bearer own"]


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "x"])
def test_watching_at_an_impossible_interval_is_bad_usage(seconds, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["status", f"--watch={seconds}"])

    assert caught.value.code == 2
    assert "--watch" in capsys.readouterr().err


def test_watch_shows_changes_survives_an_outage_and_ends_well_on_ctrl_c(gateway, fleet, terminal):
    gateway.json("GET", PATH, fleet)
    screen = terminal("status", "--watch", "0.1")
    screen.see("2 of 3 nodes healthy")

    gateway.error("GET", PATH, 503, "draining", "going down")
    screen.see("going down")
    gateway.json("GET", PATH, attrs.evolve(fleet, nodes=fleet.nodes[:1]))
    screen.see("1 of 1 nodes healthy")

    screen.interrupt()
    assert screen.leave() == 0
    assert "Traceback" not in screen.text


def test_loads_of_the_gateway_and_of_nodes_are_one_list_with_the_nodes_figures(fleet):
    placing = LoadJob(model="new", stage="placing", waiting=1)
    fleet = attrs.evolve(fleet, loads=(*fleet.loads, placing))

    coder, new = under_way(fleet)

    assert (coder.stage, coder.progress, coder.eta_s, coder.waiting) == ("fetching", 0.43, 80.0, 4)
    assert new == placing
    [alone] = under_way(attrs.evolve(fleet, loads=()))
    assert (alone.model, alone.node) == (coder.model, "beast")


def test_as_a_program_it_prints_and_says_0(gateway, fleet, command):
    gateway.json("GET", PATH, fleet)

    done = command("status")

    assert (done.returncode, done.stderr) == (0, "")
    assert "Qwen/Qwen3-8B" in done.stdout


@pytest.mark.parametrize("text", ["x", "-1", "0"])
def test_an_interval_that_is_none_is_told_as_it_was_given(capsys, text):
    with pytest.raises(SystemExit):
        main(["status", "--watch", text])

    assert f"expected 0.1 to 3600 seconds, got '{text}'" in capsys.readouterr().err


def test_an_option_nobody_knows_is_told_with_the_usage_of_its_command(capsys):
    with pytest.raises(SystemExit):
        main(["status", "--jsn"])

    said = capsys.readouterr().err
    assert said.startswith("usage: cortex status ")
    assert said.endswith("cortex status: error: unrecognized arguments: --jsn\n")


def test_what_is_no_gateway_is_told(gateway, capsys):
    gateway.error("GET", "/api/v1/fleet", 404, "not_found", "no such path: /api/v1/fleet")

    assert main(["status"]) == 1

    assert "is a cortex gateway at this address" in capsys.readouterr().err
