"""What each screen shows, in four states of the fleet, on a small terminal and on a large one."""

from __future__ import annotations

import re
from collections.abc import Sequence

import attrs
import pytest

from cortex.fleet.node import Explanation, Fleet, LoadJob, RequestState, Verdict
from tests.cli.top.watching import TellingGateway, Watcher, watching

GREY = 8  # what rounding makes of it
SMALL, LARGE = (80, 24), (200, 60)
CODER = "Qwen/Qwen3-Coder-30B-A3B-Instruct"
REQUESTS = (
    RequestState(
        id="req-1",
        state="answering",
        model="Qwen/Qwen3-8B",
        node="beast",
        principal="zed",
        age_s=12.0,
        ttft_s=2.0,
        completion_tokens=400,
    ),
    RequestState(id="req-2", state="loading", model=CODER, principal="amy", age_s=61.0),
    RequestState(
        id="req-0",
        state="ok",
        model="Qwen/Qwen3-8B",
        node="beast",
        principal="zed",
        status=200,
        age_s=300.0,
        duration_s=4.5,
        ttft_s=0.5,
        completion_tokens=100,
    ),
)
EXPLAINED = Explanation(
    model="Qwen/Qwen3-8B",
    how="loaded",
    node="beast",
    nodes=(
        Verdict(node="attic", verdict="no", reason="unreachable"),
        Verdict(node="beast", verdict="serves", in_flight=3, pinned=True),
    ),
)


def healthy(fleet: Fleet) -> Fleet:
    beast = attrs.evolve(fleet.nodes[0], models=fleet.nodes[0].models[:1], in_flight=3)
    return attrs.evolve(fleet, nodes=(beast,), loads=())


async def look_around(
    watcher: Watcher,
    *,
    fleet: Sequence[str] = (),
    model: Sequence[str] = (),
    requests: Sequence[str] = (),
    events: Sequence[str] = (),
    every: Sequence[str] = (),
) -> None:
    """Visit the screens, and wait until each shows all that is asked for, within the terminal."""
    await watcher.press("1")
    await watcher.sees("MODEL NODE STATE RUN WAIT TOK/S", *fleet, *every)
    fits(watcher)
    await watcher.press("enter")
    await watcher.sees("Qwen/Qwen3-8B", "NODE STATE GiB", "Back", *model, *every)
    fits(watcher)
    await watcher.press("escape", "2")
    await watcher.sees("under way, and the last", "AGE TTFT TOKENS TOK/S", *requests, *every)
    fits(watcher)
    await watcher.press("3")
    await watcher.sees("/ to filter", "connected, version 0.1.0", *events, *every)
    fits(watcher)


def fits(watcher: Watcher) -> None:
    columns, lines = watcher.app.size
    rows = watcher.text.splitlines()
    assert len(rows) <= lines
    assert max(map(len, rows)) <= columns


@pytest.fixture
def gateway(telling: TellingGateway) -> TellingGateway:
    telling.requests = REQUESTS
    telling.explanation = EXPLAINED
    return telling


async def test_healthy(gateway, fleet):
    gateway.fleet = attrs.evolve(healthy(fleet), pins={"Qwen/Qwen3-8B": ("beast",)})
    nodes = (
        "cortex 0.1.0 1 of 1 nodes healthy 3 in flight up 1h 2m",
        "beast ok up 3d 4h 0.1.0 3 in flight",
        "18.2/ 24.0 GiB 97% 71°C",
        "█ Qwen/Qwen3-8B 17.6 ▚ other 0.6",
        "Qwen/Qwen3-8B* beast loaded 3 2",
        "google/gemma-3-27b-it on demand",
    )
    model = (
        "Qwen/Qwen3-8B goes to beast",
        "attic no 0 unreachable",
        "beast serves 3 pinned there",
        "pinned on beast",
        "beast loaded 17.6 32768 3 2 42% 0%",
    )
    requests = (
        "2 under way, and the last 1 that are over",
        "12s 2.00s 400 40",
        "4s 0.50s 100 25",
    )

    async with watching(gateway.url, size=SMALL) as watcher:
        await look_around(watcher, fleet=nodes, model=model, requests=requests)
        await watcher.resize(LARGE)
        ids = ("answering req-1 zed", "ok req-0 zed")
        await look_around(watcher, fleet=nodes, model=model, requests=(*requests, *ids))


async def test_loading(gateway, fleet):
    job = LoadJob(model=CODER, node="beast", stage="fetching", progress=0.43, eta_s=80.0, waiting=4)
    gateway.fleet = attrs.evolve(fleet, nodes=fleet.nodes[:1], loads=(job,))

    async with watching(gateway.url, size=SMALL) as watcher:
        await look_around(watcher, fleet=("Qwen3-Coder-30B", "43% 1m 20s 4"))
        await watcher.resize(LARGE)
        await watcher.press("1")
        await watcher.sees(CODER, "fetching ██████▉········· 43% 1m 20s 4")
        fits(watcher)

        job = attrs.evolve(job, stage="reading", progress=0.5, eta_s=None)
        model = attrs.evolve(fleet.nodes[0].models[1], stage="reading", progress=0.5, eta_s=None)
        beast = attrs.evolve(fleet.nodes[0], models=(fleet.nodes[0].models[0], model))
        gateway.fleet = attrs.evolve(fleet, nodes=(beast,), loads=(job,))
        gateway.tell("load_progress", job)
        gateway.tell("model", {"node": "beast", "model": model})
        await watcher.sees("reading ████████········ 50% 4")
        await watcher.press("3")
        await watcher.sees(f"load {CODER} on beast: reading")


async def test_degraded(gateway, fleet):
    drained = attrs.evolve(fleet.nodes[0], drained=True)
    gateway.fleet = attrs.evolve(fleet, nodes=(drained, *fleet.nodes[1:]))
    nodes = (
        "2 of 3 nodes healthy",
        "attic unreachable connection refused",
        "beast ok drained",
        "benjy degraded, warming 1/3",
        "recovering",
    )

    async with watching(gateway.url, size=SMALL) as watcher:
        await look_around(watcher, fleet=(*nodes, "unservable: its w…"))
        await watcher.resize(LARGE)
        await watcher.press("1")
        await watcher.sees(*nodes, "unservable: its worker is restarting")
        fits(watcher)

        gone = attrs.evolve(drained, healthy=False, error="silent for 5 s")
        gateway.fleet = attrs.evolve(fleet, nodes=(gone, *fleet.nodes[1:]))
        told = {"node": "beast", "healthy": False, "drained": True, "error": gone.error}
        gateway.tell("node", told)
        await watcher.sees(
            "1 of 3 nodes healthy",
            "beast unreachable drained silent for 5 s",
            "Qwen/Qwen3-8B beast unreachable",
        )
        await watcher.press("3")
        await watcher.sees("node ! beast unreachable, drained: silent for 5 s")


async def test_the_gateway_is_lost_and_found(gateway, fleet):
    last = ("beast ok stale", "Qwen/Qwen3-8B beast loaded 3 2")
    events = ("gateway ! no gateway listens at",)
    every = ("STALE, as of", "next try in", "no gateway listens at")

    async with watching(gateway.url, size=SMALL) as watcher:
        await watcher.sees("2 of 3 nodes healthy", "Qwen/Qwen3-8B beast loaded", "beast ok")
        await gateway.stop()
        await look_around(watcher, fleet=last, events=events, every=every)
        await watcher.resize(LARGE)
        await watcher.press("1")
        await watcher.sees(*last, *every)
        fits(watcher)

        gateway.fleet = attrs.evolve(fleet, version="0.2.0")
        await gateway.start(gateway.address)
        shown = await watcher.sees("cortex 0.2.0 2 of 3 nodes healthy")
        await watcher.press("3")
        await watcher.sees("connected, version 0.2.0")

    assert "STALE" not in shown
    assert gateway.streams == 2


async def test_without_a_gateway_it_says_how_to_get_one(nowhere):
    async with watching(nowhere) as watcher:
        await watcher.sees("no gateway listens at", "start it with: cortex serve", "next try in")


async def test_without_a_node_it_says_how_to_add_one(telling):
    telling.fleet = Fleet(version="0.1.0", uptime_s=1)
    async with watching(telling.url) as watcher:
        await watcher.sees("no node is configured: add [[neurons]] to cortex.toml")


@pytest.mark.parametrize("how", ["light", "no colour"])
async def test_light_and_without_colour_say_the_same(telling, monkeypatch, how):
    wanted = ("Qwen/Qwen3-8B beast loaded", "benjy degraded", "attic unreachable")
    async with watching(telling.url) as watcher:
        dark = await watcher.sees(*wanted)
        assert colours(watcher)
    if how == "no colour":
        monkeypatch.setenv("NO_COLOR", "1")

    async with watching(telling.url, light=how == "light") as watcher:
        assert await watcher.sees(*wanted) == dark
        assert bool(colours(watcher)) == (how == "light")


def colours(watcher: Watcher) -> set[tuple[int, int, int]]:
    """Return the colours in which something is drawn, shades of grey left out."""
    svg = watcher.app.export_screenshot()
    found = {tuple(bytes.fromhex(code)) for code in re.findall(r"fill: #([0-9a-f]{6})", svg)}
    return {code for code in found if max(code) - min(code) > GREY}
