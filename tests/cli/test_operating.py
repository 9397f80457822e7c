"""What an operator does from a terminal: nodes, requests, pins, explain, reload."""

from __future__ import annotations

import json

import pytest

from cortex.__main__ import main
from cortex.fleet.node import Explanation, RequestState, Verdict

PIN = "/api/v1/models/org%2Fm/pin"


def rows(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_nodes_are_listed_and_drained(gateway, fleet, capsys):
    gateway.json("GET", "/api/v1/fleet", fleet)
    gateway.json(
        "POST",
        "/api/v1/nodes/beast/drain",
        {"node": "beast", "drained": True, "in_flight": 2},
    )

    assert main(["nodes"]) == 0
    said = rows(capsys.readouterr().out)
    assert said[:2] == ["NODE STATE REQUESTS MODELS", "beast ok 0 Qwen/Qwen3-8B"]

    assert main(["nodes", "drain", "beast"]) == 0
    assert capsys.readouterr().out == "drained: beast, 2 requests under way there\n"


def test_requests_are_listed(gateway, capsys):
    row = RequestState(
        id="r1", state="answering", model="m", node="beast", principal="zed", age_s=61, ttft_s=0.5
    )
    gateway.json("GET", "/api/v1/requests", {"requests": [row]})

    assert main(["requests"]) == 0

    assert rows(capsys.readouterr().out) == [
        "ID STATE WHO MODEL NODE AGE TTFT TOKENS STATUS",
        "r1 answering zed m beast 1m 1s 0.50s 0",
    ]


def test_a_pin_says_where_it_holds(gateway, capsys):
    gateway.json("POST", PIN, {"model_id": "org/m", "pinned_on": ["beast"]})

    assert main(["models", "pin", "org/m", "--node", "beast"]) == 0

    assert capsys.readouterr().out == "org/m: pinned on beast\n"
    assert gateway.calls[0].body == {"node": "beast"}


def test_an_explanation_is_a_sentence_and_a_row_a_node(gateway, capsys):
    verdicts = (
        Verdict(node="a", verdict="evicts", evict=("b", "c"), pinned=True),
        Verdict(node="z", verdict="no", reason="it is drained"),
    )
    found = Explanation(model="m", how="cold-load", node="a", queued=2, nodes=verdicts)
    gateway.json("GET", "/api/v1/explain", found)

    assert main(["models", "explain", "m"]) == 0

    assert rows(capsys.readouterr().out) == [
        "m would be loaded on a, 2 wait already",
        "NODE VERDICT REQUESTS WHY",
        "a evicts 0 after b, c went, pinned there",
        "z no 0 it is drained",
    ]


def test_a_reload_says_what_changed_and_what_did_not(gateway, capsys):
    changed = {"key": "queue.max_depth", "was": 1, "now": 2}
    restart = {"key": "gateway.listen", "was": "a:1", "now": "a:2"}
    gateway.json("POST", "/api/v1/reload", {"changed": [changed], "restart": [restart]})

    assert main(["reload"]) == 0

    assert capsys.readouterr().out.splitlines() == [
        "queue.max_depth: 2, was 1",
        'gateway.listen: stays "a:1" until a restart',
    ]


def test_a_reload_that_is_refused_fails_with_its_reason(gateway, capsys):
    gateway.error("POST", "/api/v1/reload", 422, "reload_refused", "cortex.toml: x: unknown key")

    assert main(["reload"]) == 1

    assert "cortex.toml: x: unknown key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "method", "path", "answer"),
    [
        (["nodes", "resume", "a", "--json"], "POST", "/api/v1/nodes/a/resume", {"drained": False}),
        (["models", "unpin", "org/m", "--json"], "POST", PIN.replace("pin", "unpin"), {"x": 1}),
        (["models", "explain", "m", "--json"], "GET", "/api/v1/explain", {"x": 1}),
        (["requests", "--json"], "GET", "/api/v1/requests", {"requests": []}),
        (["reload", "--json"], "POST", "/api/v1/reload", {"changed": []}),
    ],
)
def test_json_is_what_the_gateway_says(gateway, capsys, argv, method, path, answer):
    gateway.json(method, path, answer)

    assert main(argv) == 0

    assert json.loads(capsys.readouterr().out) == answer


def test_a_request_is_cancelled(gateway, capsys):
    gateway.json("GET", "/api/v1/requests", under_way())
    gateway.json("DELETE", "/api/v1/requests/r1", {"id": "r1", "cancelled": 1})

    assert main(["requests", "cancel", "r1"]) == 0

    assert capsys.readouterr().out == "cancelled: r1\n"


def under_way(*ids: str) -> dict[str, list[RequestState]]:
    over = RequestState(id="abc9", state="ok", status=200, duration_s=1.0)
    going = [RequestState(id=one, state="answering", status=200) for one in ids]
    return {"requests": [*going, over]}


def test_the_beginning_of_an_id_is_enough_to_cancel_it(gateway, capsys):
    gateway.json("GET", "/api/v1/requests", under_way("abc1", "def2"))
    gateway.json("DELETE", "/api/v1/requests/abc1", {"id": "abc1", "cancelled": 1})

    assert main(["requests", "cancel", "abc"]) == 0

    assert capsys.readouterr().out == "cancelled: abc1\n"


def test_the_beginning_of_two_ids_cancels_neither(gateway, capsys):
    gateway.json("GET", "/api/v1/requests", under_way("abc1", "abc2"))

    assert main(["requests", "cancel", "abc"]) == 1

    assert "2 requests under way have an id that begins with 'abc'" in capsys.readouterr().err
    assert [call.method for call in gateway.calls] == ["GET"]


def test_an_id_keeps_to_one_line_where_the_terminal_is_narrow(gateway, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    row = RequestState(
        id="0c5d7ec4c50728f75c3e7e7a0dcb0ad6",
        state="cancelled",
        model="smollm2-135m",
        principal="anonymous",
        node="beast",
        age_s=661,
        ttft_s=12.5,
        status=200,
    )
    gateway.json("GET", "/api/v1/requests", {"requests": [row]})

    assert main(["requests"]) == 0

    _, first, *more = capsys.readouterr().out.splitlines()
    assert first.startswith("0c5d7ec4")
    assert [line[:8].strip() for line in more] == [""] * len(more)
