"""``cortex models``: the list, load with its progress, unload."""

from __future__ import annotations

import json
import threading

import attrs
import msgspec
import pytest

from cortex.__main__ import main
from cortex.cli import loads

LISTING = {
    "object": "list",
    "data": [
        {
            "id": "Qwen/Qwen3-8B",
            "object": "model",
            "created": 1,
            "owned_by": "cortex",
            "loaded": True,
            "feasible_on": ["beast", "benjy"],
            "locations": [{"node": "beast", "status": "loaded"}],
            "capabilities": ["text", "tools"],
            "limit": {"context": 32768, "output": 8192},
            "max_model_len": 32768,
        },
        {
            "id": "org/big",
            "loaded": False,
            "feasible_on": ["beast"],
            "locations": [{"node": "beast", "status": "loading", "progress": 0.5}],
        },
        {"id": "org/cold", "loaded": False, "feasible_on": ["beast", "benjy"], "aliases": ["c"]},
        {"id": "org/huge", "loaded": False, "feasible_on": []},
        {"id": "helexa/small", "alias_of": "Qwen/Qwen3-8B", "loaded": True},
    ],
}
LOAD = "/api/v1/models/Qwen%2FQwen3-8B/load"
UNLOAD = "/api/v1/models/Qwen%2FQwen3-8B/unload"
DONE = {"status": "loaded", "model_id": "Qwen/Qwen3-8B", "node": "beast"}


def rows(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_list_says_state_where_and_aliases(gateway, capsys):
    gateway.json("GET", "/v1/models", LISTING)

    assert main(["models"]) == 0

    assert rows(capsys.readouterr().out) == [
        "MODEL STATE WHERE CONTEXT CAN ALIASES",
        "Qwen/Qwen3-8B loaded beast 32768 text, tools helexa/small",
        "org/big loading 50% beast",
        "org/cold on demand beast, benjy c",
        "org/huge nowhere no node can hold it",
    ]


def test_an_empty_catalogue_says_where_to_add_a_model(gateway, capsys):
    gateway.json("GET", "/v1/models", {"object": "list", "data": []})

    assert main(["models"]) == 0

    assert capsys.readouterr().out == "the catalogue is empty: add [[models]] to models.toml\n"


def test_json_is_what_the_gateway_said(gateway, capsys):
    gateway.json("GET", "/v1/models", LISTING)

    assert main(["models", "--json"]) == 0

    assert json.loads(capsys.readouterr().out) == LISTING


@pytest.mark.parametrize("action", [[], ["load", "x"], ["unload", "x"]])
def test_a_gateway_that_is_down_is_named(nowhere, capsys, action):
    assert main(["models", *action]) == 1

    assert f"no gateway listens at {nowhere}" in capsys.readouterr().err


@pytest.fixture
def slow_load(gateway, fleet):
    """Have a load that ends once the fleet was looked at in two stages."""
    looks = threading.Semaphore(0)
    stages = iter([("fetching", 0.25), ("warming up", 0.9)])

    def look(call):
        stage, progress = next(stages, ("warming up", 0.95))
        model = attrs.evolve(
            fleet.nodes[0].models[1],
            id="Qwen/Qwen3-8B",
            stage=stage,
            progress=progress,
        )
        node = attrs.evolve(fleet.nodes[0], models=(model,))
        looks.release()
        body = msgspec.json.encode(attrs.evolve(fleet, nodes=(node,), loads=()))
        return 200, {}, [body]

    def load(call):
        assert looks.acquire(timeout=10)
        assert looks.acquire(timeout=10)
        return 200, {}, [json.dumps(DONE).encode()]

    gateway.on("GET", "/api/v1/fleet", look)
    gateway.on("POST", LOAD, load)
    return gateway


def test_load_waits_and_tells_each_stage_once_without_a_terminal(slow_load, capsys, monkeypatch):
    monkeypatch.setattr(loads, "POLL_S", 0.01)

    assert main(["models", "load", "Qwen/Qwen3-8B", "--node", "beast"]) == 0

    said = capsys.readouterr()
    assert said.out.startswith("loaded: Qwen/Qwen3-8B on beast in ")
    assert said.err.splitlines() == [
        "Qwen/Qwen3-8B on beast: fetching",
        "Qwen/Qwen3-8B on beast: warming up",
    ]
    [post] = [call for call in slow_load.calls if call.method == "POST"]
    assert post.body == {"node": "beast"}


def test_load_shows_a_bar_on_a_terminal(slow_load, terminal):
    screen = terminal("models", "load", "Qwen/Qwen3-8B", columns=80)

    screen.see("beast: fetching")
    screen.see("25%")
    screen.see("1m 20s left")
    screen.see("loaded: Qwen/Qwen3-8B on beast in ")
    assert screen.leave() == 0


def test_load_json_is_the_gateways_answer(gateway, capsys):
    gateway.json("POST", LOAD, DONE)

    assert main(["models", "load", "Qwen/Qwen3-8B", "--json", "--gateway", gateway.url]) == 0

    assert json.loads(capsys.readouterr().out) == DONE


def test_options_before_the_action_hold_too(gateway, monkeypatch, capsys):
    monkeypatch.setenv("CORTEX_URL", "http://127.0.0.1:9")
    gateway.json("POST", LOAD, DONE)

    before = ["models", "--gateway", gateway.url, "--key", "k", "--json"]
    assert main([*before, "load", "Qwen/Qwen3-8B"]) == 0

    assert gateway.calls[0].headers["authorization"] == "Bearer k"
    assert json.loads(capsys.readouterr().out) == DONE


def test_load_of_an_unknown_model_passes_the_gateways_words_on(gateway, capsys):
    said = "no model is called 'Qwen/Qwen3-8B' (did you mean 'Qwen/Qwen3-4B'?)"
    gateway.error("POST", LOAD, 404, "model_not_found", said)

    assert main(["models", "load", "Qwen/Qwen3-8B"]) == 1

    assert capsys.readouterr().err == f"cortex models: {said}\n"


def test_load_goes_on_without_a_picture_if_the_key_may_not_look(slow_load, capsys, monkeypatch):
    monkeypatch.setattr(loads, "POLL_S", 0.01)
    looked = threading.Event()

    def refuse(call):
        looked.set()
        return 403, {}, [b'{"error": {"message": "not for you", "code": "forbidden"}}']

    def load(call):
        assert looked.wait(10)
        return 200, {}, [json.dumps(DONE).encode()]

    slow_load.on("GET", "/api/v1/fleet", refuse)
    slow_load.on("POST", LOAD, load)

    assert main(["models", "load", "Qwen/Qwen3-8B"]) == 0


def test_a_gateway_that_goes_silent_during_a_load_is_noticed(gateway, monkeypatch, capsys):
    monkeypatch.setattr(loads, "POLL_S", 0.01)
    monkeypatch.setattr(loads, "POLL_TIMEOUT_S", 0.02)
    over = threading.Event()

    def hang(call):
        over.wait(10)
        return 200, {}, []

    gateway.on("GET", "/api/v1/fleet", hang)
    gateway.on("POST", LOAD, hang)

    assert main(["models", "load", "Qwen/Qwen3-8B"]) == 1

    over.set()
    assert "was silent for 0.02 s" in capsys.readouterr().err


def test_ctrl_c_during_a_load_stops_the_waiting_and_says_so(gateway, fleet, terminal):
    over = threading.Event()
    gateway.json("GET", "/api/v1/fleet", fleet)
    gateway.on("POST", LOAD, lambda _: (200, {}, [b"{}"] if over.wait(10) else []))
    screen = terminal("models", "load", "Qwen/Qwen3-8B")
    screen.see("Qwen/Qwen3-8B")

    screen.interrupt()

    screen.see("see how it goes with: cortex status")
    assert screen.leave() == 130
    over.set()


def test_unload_sends_node_and_force(gateway, capsys):
    gateway.json("POST", UNLOAD, {"status": "unloaded", "model_id": "Qwen/Qwen3-8B", "node": "b"})

    assert main(["models", "unload", "Qwen/Qwen3-8B"]) == 0
    assert main(["models", "unload", "Qwen/Qwen3-8B", "--node", "b", "--force"]) == 0

    assert [call.body for call in gateway.calls] == [{}, {"node": "b", "force": True}]
    assert capsys.readouterr().out == "unloaded: Qwen/Qwen3-8B on b\n" * 2


def test_unload_of_a_busy_model_says_so(gateway, capsys):
    gateway.error("POST", UNLOAD, 409, "model_busy", "3 requests are in flight")

    assert main(["models", "unload", "Qwen/Qwen3-8B"]) == 1

    assert capsys.readouterr().err == "cortex models: 3 requests are in flight\n"
