"""What the dashboard knows: events lead to the same picture as a snapshot, and are told."""

from __future__ import annotations

import attrs
import msgspec
import pytest

from cortex.cli.top.drawing import Segment, bar, short, sparkline, split_bar
from cortex.cli.top.journal import KEPT, Journal
from cortex.cli.top.rates import Rates
from cortex.cli.top.replicas import replicas
from cortex.cli.top.requests import keyed, tok_s
from cortex.cli.top.view import View
from cortex.fleet.node import (
    Fleet,
    FleetNode,
    Health,
    LoadJob,
    ModelHealth,
    NodeModel,
    RequestState,
)

M = NodeModel(id="m", status="loaded", devices=(0,), vram_used_mb=100)


def node(name: str = "a", *models: NodeModel, **more) -> FleetNode:
    return FleetNode(name=name, endpoint="http://a", healthy=True, models=models, **more)


def viewing(*nodes: FleetNode, **more) -> View:
    view = View()
    hear(view, "snapshot", Fleet(version="1", uptime_s=1.0, nodes=nodes, **more))
    return view


def hear(view: View, event: str, data: object, now: float = 1.0) -> None:
    view.hear(event, msgspec.json.encode(data), now)


def told(view: View) -> list[str]:
    return [f"{entry.kind}: {entry.text}" for entry in view.journal.since(0)]


def test_a_model_is_loaded_and_gone_again():
    view = viewing(node())

    hear(view, "load_progress", LoadJob(model="m"))
    hear(view, "load_progress", LoadJob(model="m", node="a", stage="reading", progress=0.1))
    hear(view, "load_progress", LoadJob(model="m", node="a", stage="reading", progress=0.2))
    hear(view, "model", {"node": "a", "model": attrs.evolve(M, status="loading")})
    (row,) = replicas(view.fleet, view.rates)
    assert (row.node, row.state, row.load.progress) == ("a", "loading", 0.2)

    hear(view, "load_ended", {"model": "m"})
    hear(view, "model", {"node": "a", "model": M})
    (row,) = replicas(view.fleet, view.rates)
    assert (row.state, row.load) == ("loaded", None)

    hear(view, "model", {"node": "a", "model": {"id": "m", "status": "unloaded"}})
    assert replicas(view.fleet, view.rates) == []
    assert told(view)[1:] == [
        "load: m: placing",
        "load: m on a: reading",
        "model: m on a: loading",
        "load: m ended",
        "model: m on a: loaded",
        "model: m on a: unloaded",
    ]


def test_a_node_comes_changes_and_leaves():
    view = viewing(node("a"))

    hear(view, "node", {"node": "b", "healthy": True, "drained": False, "error": None})
    assert [each.name for each in view.fleet.nodes] == ["a", "b"]
    hear(view, "node", {"node": "b", "healthy": False, "drained": True, "error": "gone"})
    assert (view.fleet.nodes[1].healthy, view.fleet.nodes[1].drained) == (False, True)
    hear(view, "node", {"node": "b", "gone": True})
    assert [each.name for each in view.fleet.nodes] == ["a"]
    assert told(view)[1:] == ["node: b ok", "node: b unreachable, drained: gone", "node: b left"]


def test_a_lost_gateway_leaves_what_was_known():
    view = viewing(node("a"))
    assert not view.stale

    view.lose("no gateway", 5.0, 6.0)
    view.lose("no gateway", 6.0, 8.0)

    assert (view.stale, view.heard_at, view.retry_at) == (True, 1.0, 8.0)
    assert view.fleet.nodes[0].name == "a"
    assert told(view) == ["gateway: connected, version 1", "gateway: no gateway"]
    hear(view, "snapshot", view.fleet, 9.0)
    assert (view.stale, view.heard_at) == (False, 9.0)


@pytest.mark.parametrize("event", ["load_progress", "model", "node", "load_ended"])
def test_what_is_not_understood_is_told_and_changes_nothing(event):
    view = viewing(node("a", M))
    before = view.fleet
    view.hear(event, b'{"node": 1', 2.0)
    view.hear("of a newer gateway", b"{}", 2.0)
    assert view.fleet is before
    assert [line.partition(":")[0] for line in told(view)] == ["gateway", "gateway"]


def test_an_event_before_the_first_snapshot_does_no_harm():
    view = View()
    for event, data in (
        ("node", {"node": "a"}),
        ("model", {"node": "a", "model": M}),
        ("load_progress", LoadJob(model="m")),
        ("load_ended", {"model": "m"}),
    ):
        hear(view, event, data)
    assert view.fleet is None


def test_reloads_requests_and_a_drop_are_told():
    view = viewing()
    hear(view, "reload", {"changed": [{"key": "a"}], "restart": []})
    hear(view, "dropped", {"reason": "1024 events behind"})
    hear(view, "request", RequestState(id="r", state="error", status=503, model="m"))
    assert told(view)[1:] == [
        "reload: 1 changed, 0 need a restart",
        "gateway: dropped us: 1024 events behind",
        "request: r error 503 m",
    ]
    assert [entry.bad for entry in view.journal.since(1)] == [False, True, True]


def test_the_journal_keeps_the_last_and_finds_words():
    journal = Journal()
    for number in range(KEPT + 5):
        journal.note(0.0, "node", f"n{number} ok")
    journal.note(0.0, "load", "Model on n7")
    assert len(list(journal.since(0))) == KEPT
    assert [entry.text for entry in journal.since(0, "N7 load")] == ["Model on n7"]
    assert list(journal.since(journal.last)) == []


# Rates.


def health(uptime_s: float, tokens: int, tok_s: float | None = None) -> Fleet:
    row = ModelHealth(id="m", state="loaded", tokens_total=tokens, tok_s=tok_s)
    said = Health(status="ok", uptime_secs=uptime_s, models=(row,))
    return Fleet(version="1", uptime_s=1.0, nodes=(node("a", M, health=said),))


def test_a_rate_is_what_came_on_the_nodes_own_clock():
    rates = Rates()
    for fleet in (health(10, 100), health(10, 100), health(12, 150), health(13, 160)):
        rates.take(fleet)
    assert rates.of("m", "a") == (25.0, 10.0)


def test_what_the_engine_says_of_its_rate_goes_first():
    rates = Rates()
    for fleet in (health(10, 100, 7.0), health(12, 150, 8.0)):
        rates.take(fleet)
    assert rates.of("m", "a") == (7.0, 8.0)


def test_another_process_or_none_begins_anew():
    rates = Rates()
    for fleet in (health(10, 100), health(12, 150), health(1, 0)):
        rates.take(fleet)
    assert rates.of("m", "a") == ()
    rates.take(health(2, 4))
    assert rates.of("m", "a") == (4.0,)
    rates.take(Fleet(version="1", uptime_s=1.0))
    assert rates.of("m", "a") == ()


# Drawing.


@pytest.mark.parametrize(
    ("share", "drawn"), [(0, "····"), (0.5, "██··"), (0.53, "██▏·"), (1, "████"), (7, "████")]
)
def test_a_bar(share, drawn):
    assert bar(share, 4) == drawn


@pytest.mark.parametrize(
    ("sizes", "drawn"),
    [((), "········"), ((50, 25), "████▓▓··"), ((1, 99), "▓▓▓▓▓▓▓▓"), ((80, 80), "██████▓▓")],
)
def test_a_bar_of_parts_is_as_wide_as_it_may_be(sizes, drawn):
    parts = [
        Segment(name="x", size=size, fill=fill) for size, fill in zip(sizes, "█▓", strict=False)
    ]
    assert split_bar(parts, 100, 8).plain == drawn


def test_a_sparkline_is_as_high_as_its_highest():
    assert sparkline([0, 5, 10], 4) == " ▁▅█"
    assert sparkline([10, 0, 0], 2) == "▁▁"
    assert sparkline([0, 0], 4) == sparkline([], 4) == ""


@pytest.mark.parametrize(
    ("columns", "name"), [(20, "Qwen/Qwen3-8B"), (8, "Qwen3-8B"), (5, "Qwen…")]
)
def test_a_name_loses_its_maker_first(columns, name):
    assert short("Qwen/Qwen3-8B", columns) == name


# Requests.


def test_two_requests_of_one_id_are_two_rows():
    row = RequestState(id="r", state="answering")
    assert list(keyed((row, row, attrs.evolve(row, state="ok")))) == ["r", "r\n2", "r\n3"]


@pytest.mark.parametrize(
    ("more", "rate"),
    [
        ({}, None),
        ({"ttft_s": 1.0}, None),
        ({"ttft_s": 1.0, "completion_tokens": 30}, 10.0),
        ({"ttft_s": 1.0, "completion_tokens": 30, "duration_s": 2.0}, 30.0),
        ({"ttft_s": 4.0, "completion_tokens": 30}, None),
        ({"ttft_s": 1.999, "completion_tokens": 30, "duration_s": 2.0}, None),
    ],
)
def test_a_requests_rate_is_since_its_first_byte(more, rate):
    assert tok_s(RequestState(id="r", state="answering", age_s=4.0, **more)) == rate
