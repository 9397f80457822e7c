"""What each screen shows, in four states of the fleet, on a small terminal and on a large one."""

from __future__ import annotations

import re
import time

import attrs
import pytest

from cortex.cli.top import app
from cortex.cli.top.model import ModelScreen
from cortex.cli.top.requests import RequestsScreen
from cortex.fleet.node import Fleet
from tests.cli.top.album import matches, pictured
from tests.cli.top.states import QWEN, REQUESTS, STATES
from tests.cli.top.watching import Watcher, watching

GREY = 8  # what rounding makes of it
SMALL, LARGE, PICTURE = (80, 24), (200, 60), (112, 22)
URL = "http://cortex.example:31313"
NEVER_S = 3600.0


class Clock:
    """Stands still until it is put forward."""

    now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def still(monkeypatch, telling) -> Clock:
    """Have nothing on the screens change by itself, nor with the port or the hour of the test."""
    monkeypatch.setattr(app, "POLL_S", NEVER_S)
    monkeypatch.setattr(app, "PAUSES_S", (0.05, 10.0))
    monkeypatch.setattr(ModelScreen, "EVERY_S", NEVER_S)
    monkeypatch.setattr(RequestsScreen, "EVERY_S", NEVER_S)
    monkeypatch.setenv("http_proxy", telling.url)  # which is how URL leads there
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield Clock()
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("name", STATES)
async def test_every_screen_is_as_in_its_files(telling, fleet, still, name):
    state = STATES[name](fleet)
    telling.fleet, telling.past, telling.explanation = state.fleet, state.past, state.explained
    telling.requests = REQUESTS

    async with watching(URL, size=SMALL, clock=still) as watcher:

        async def look(at: str) -> None:
            for size in (SMALL, LARGE):
                await watcher.resize(size)
                await matches(watcher, f"{name}-{at}")
            if name == "healthy" and at != "events":
                await watcher.resize(PICTURE)
                assert await pictured(watcher, f"top-{at}") < 100_000

        await watcher.sees("nodes healthy", f"{QWEN}")
        watcher.press("2")
        await watcher.sees("2 under way")
        watcher.press("1")
        await watcher.sees("MODEL NODE STATE")
        watcher.press("enter")
        await watcher.sees("A request that came now")
        still.now += 30
        await state.then(telling)
        await look("model")
        watcher.press("escape")
        await look("fleet")
        watcher.press("2")
        await look("requests")
        watcher.press("3")
        await look("events")


async def test_the_gateway_is_lost_and_found(telling, fleet):
    async with watching(telling.url) as watcher:
        await watcher.sees("2 of 3 nodes healthy", "Qwen/Qwen3-8B beast loaded", "beast ok")
        await telling.stop()
        await watcher.sees("STALE, as of", "no gateway listens at", "beast ok stale")

        telling.fleet = attrs.evolve(fleet, version="0.2.0")
        await telling.start(telling.address)
        await watcher.sees("cortex 0.2.0 2 of 3 nodes healthy", gone="STALE")
        watcher.press("3")
        await watcher.sees("connected, version 0.2.0")
    assert telling.streams == 2


async def test_without_a_gateway_it_says_how_to_get_one(nowhere):
    async with watching(nowhere) as watcher:
        await watcher.sees("no gateway listens at", "start it with: cortex serve", "next try in")


async def test_without_a_node_it_says_how_to_add_one(telling):
    telling.fleet = Fleet(version="0.1.0", uptime_s=1)
    async with watching(telling.url) as watcher:
        await watcher.sees("no node is configured: add [[neurons]] to cortex.toml")


async def test_light_and_without_colour_say_the_same(telling, still, monkeypatch):
    for light, no_colour in ((False, False), (True, False), (False, True)):
        if no_colour:
            monkeypatch.setenv("NO_COLOR", "1")
        async with watching(URL, light=light, clock=still) as watcher:
            await matches(watcher, "in-any-colours")
            assert bool(colours(watcher)) != no_colour


def colours(watcher: Watcher) -> set[tuple[int, int, int]]:
    """Return the colours in which something is drawn, shades of grey left out."""
    svg = watcher.app.export_screenshot()
    found = {tuple(bytes.fromhex(code)) for code in re.findall(r"fill: #([0-9a-f]{6})", svg)}
    return {code for code in found if max(code) - min(code) > GREY}
