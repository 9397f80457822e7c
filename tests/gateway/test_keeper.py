"""What the gateway does by itself: unload the idle, load what is wanted, keep what it knows."""

from __future__ import annotations

import asyncio
import sys
import time
from time import monotonic

import pytest

from cortex.config.schema import Catalogue
from cortex.errors import RepoFetchFailed
from cortex.fleet.model import ModelSpec
from cortex.gateway import keeper
from cortex.gateway.sizes import Sizes, forget, made_of
from cortex.testing import FakeNeuron, until
from tests.gateway.running import running, ticks

BRIEF = ModelSpec(id="m", ttl_s=60)


@pytest.fixture(autouse=True)
def ticks_often(monkeypatch) -> None:
    monkeypatch.setattr(keeper, "EVERY_S", 0.02)
    monkeypatch.setattr(keeper, "RETRY_S", 0.02)


def later(monkeypatch, seconds: float) -> None:
    monkeypatch.setattr(keeper, "monotonic", lambda: monotonic() + seconds)


async def test_a_model_nobody_has_used_for_its_time_to_live_is_unloaded(monkeypatch):
    async with FakeNeuron(["m", "b"]) as node, running(node, models=[BRIEF]) as gateway:
        await gateway.ask()
        later(monkeypatch, 59)
        await ticks(gateway)
        assert node.counts["unload"] == 0

        later(monkeypatch, 61)
        await until(lambda: set(node.models) == {"b"})

        assert (await gateway.ask())["headers"]["x-cortex-route"] == "cold-load"


async def test_the_time_to_live_begins_with_the_end_of_the_last_request(monkeypatch):
    async with FakeNeuron(["m"]) as node, running(node, models=[BRIEF]) as gateway:
        node.ending = "hang"
        asking = asyncio.create_task(gateway.ask())
        await until(lambda: node.in_flight["m"])
        later(monkeypatch, 1000)
        await ticks(gateway)
        assert node.counts["unload"] == 0
        asking.cancel()


@pytest.mark.promises
async def test_a_wall_clock_that_jumps_an_hour_unloads_nothing_and_changes_no_order(
    promise, monkeypatch
):
    wall = time.time
    reading = [m for n, m in sys.modules.items() if n.startswith("cortex.")]
    reading = [module for module in reading if getattr(module, "time", None) is wall]
    assert {"cortex.gateway.accounts", "cortex.gateway.hold"} <= {m.__name__ for m in reading}

    def jump(hours: float) -> None:
        for module in (time, *reading):
            monkeypatch.setattr(module, "time", lambda: wall() + 3600 * hours)

    models = [ModelSpec(id=name, ttl_s=60, vram_mb=900) for name in "abc"]
    async with FakeNeuron(sizes=dict.fromkeys("abc", 900), vram_mb=2000) as node:
        async with running(node, models=models) as gateway:
            for model, hours in (("a", 1), ("b", -1)):
                await gateway.ask(model)
                jump(hours)
                await ticks(gateway)
            unloaded = node.counts["unload"]
            await gateway.ask("c")
            left = "".join(sorted(node.models))
    promise(
        18, f"clock an hour on, and back: {unloaded} unloaded by TTL; {left} left by LRU of abc"
    )

    assert unloaded == 0
    assert left == "bc"


async def test_what_is_pinned_or_has_no_time_to_live_stays(monkeypatch):
    models = [ModelSpec(id="m", ttl_s=60, pinned_on=("node0",)), ModelSpec(id="b")]
    async with FakeNeuron(["m", "b"]) as node, running(node, models=models) as gateway:
        later(monkeypatch, 1000)
        await ticks(gateway)

        assert node.counts["unload"] == 0


async def test_a_model_to_preload_is_loaded_at_the_start_and_once():
    models = [ModelSpec(id="m", preload=True), ModelSpec(id="b")]
    async with FakeNeuron() as node, running(node, models=models) as gateway:
        await until(lambda: set(node.models) == {"m"})
        await until(lambda: not gateway.gateway.loads.views())
        await gateway.post("/api/v1/models/m/unload")
        await ticks(gateway)

        assert node.counts["load"] == 1


async def test_a_preload_that_fails_is_tried_again():
    async with FakeNeuron() as node:
        node.load_error = RepoFetchFailed("no internet")
        async with running(node, models=[ModelSpec(id="m", preload=True)]) as gateway:
            await until(lambda: node.counts["load"] >= 2)
            node.load_error = None
            await until(lambda: gateway.gateway.nodes.get("node0").serves("m"))


async def test_a_model_that_is_loaded_already_is_not_preloaded():
    async with FakeNeuron(["m"]) as node:
        async with running(node, models=[ModelSpec(id="m", preload=True)]) as gateway:
            await ticks(gateway)

        assert node.counts["load"] == 0


async def test_what_a_model_took_is_known_after_a_restart(tmp_path):
    path = tmp_path / "state" / "sizes.json"
    async with FakeNeuron(sizes={"m": 600}) as node:
        for _ in range(2):
            async with running(node, state_path=path) as gateway:
                await gateway.ask()
                learned = dict(gateway.gateway.loads.needs_mb)
            assert learned == {"m": 600}

        assert node.counts["load"] == 1


async def test_nothing_is_written_while_nothing_new_is_learned(tmp_path, monkeypatch):
    wrote: list[dict[str, int]] = []
    write = Sizes.write

    def counting(self, needs_mb, specs):
        wrote.append(dict(needs_mb))
        write(self, needs_mb, specs)

    monkeypatch.setattr(Sizes, "write", counting)
    path = tmp_path / "sizes.json"
    async with FakeNeuron(sizes={"m": 600}) as node, running(node, state_path=path) as gateway:
        await ticks(gateway)
        before = len(wrote)
        await gateway.ask()
        await until(lambda: Sizes(path).read({"m": ModelSpec(id="m")}) == {"m": 600})
        await ticks(gateway, 5)

        assert wrote[before:] == [{"m": 600}]


def test_a_size_counts_for_a_model_as_it_was_made(tmp_path):
    path, was = tmp_path / "sizes.json", ModelSpec(id="m", context=4096)
    Sizes(path).write({"m": 600, "other": 7}, {"m": was})

    assert Sizes(path).read({"m": was}) == {"m": 600, "other": 7}
    assert Sizes(path).read({"m": ModelSpec(id="m", context=8192)}) == {"other": 7}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"models": {"m": 3}}'])
def test_a_file_that_cannot_be_read_is_no_file(tmp_path, content):
    path = tmp_path / "sizes.json"
    path.write_text(content)

    sizes = Sizes(path)

    assert sizes.read({}) == {}
    sizes.write({"m": 1}, {})
    assert Sizes(path).read({}) == {"m": 1}


def test_a_place_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    Sizes(tmp_path / "file" / "sizes.json").write({"m": 1}, {})


def test_a_reload_forgets_the_size_of_what_is_made_otherwise():
    specs = {"m": ModelSpec(id="m"), "b": ModelSpec(id="b")}
    needs_mb = {"m": 1, "b": 2}

    forget(needs_mb, specs, Catalogue(models=(ModelSpec(id="m", quant="Q4"), ModelSpec(id="b"))))

    assert needs_mb == {"b": 2}
    assert made_of(specs["m"]) == made_of(ModelSpec(id="m", vram_mb=5, priority=3))
