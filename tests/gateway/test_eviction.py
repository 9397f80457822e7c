"""Room is made just enough, and never at the cost of who is served, pinned or new."""

from __future__ import annotations

import asyncio
import random

import pytest

from cortex.errors import ModelBusy
from cortex.fleet.model import ModelSpec
from cortex.testing import FakeNeuron, until
from tests.gateway.running import Wire, chat, running

GIB = 1024
SIZES = dict.fromkeys("abcdefgh", 10 * GIB)


def specs(*names: str, **more) -> list[ModelSpec]:
    return [ModelSpec(id=name, vram_mb=SIZES[name], **more) for name in names]


def node_of(*loaded: str, gib: int = 20) -> FakeNeuron:
    return FakeNeuron(loaded, sizes=SIZES, vram_mb=gib * GIB)


async def test_nothing_is_evicted_while_there_is_room():
    async with node_of("a") as node, running(node, models=specs("a", "b")) as gateway:
        await gateway.ask("b")

        assert (sorted(node.models), node.counts["unload"]) == (["a", "b"], 0)


async def test_the_longest_unused_goes_and_no_more_than_needed():
    async with node_of("a", "b", "c", gib=30) as node:
        async with running(node, models=specs(*"abcd")) as gateway:
            for model in "bca":
                await gateway.ask(model)
            await gateway.ask("d")

            assert sorted(node.models) == ["a", "c", "d"]


async def test_a_busy_model_stays_and_who_wants_its_room_waits_for_it():
    async with node_of("a", gib=10) as node, running(node, models=specs("a", "b")) as gateway:
        node.answer, node.token_s = "word " * 1000, 0.01
        async with await Wire.to(gateway.address) as client:
            client.post(chat("a", stream=True))
            await until(lambda: node.in_flight["a"] == 1)
            wanted, jobs = asyncio.create_task(gateway.ask("b")), gateway.gateway.loads.views
            await until(lambda: [job.stage for job in jobs()] == ["waiting for room"])
            assert node.counts["unload"] == 0
        node.answer, node.token_s = "done", 0.0

        await wanted

        assert list(node.models) == ["b"]


async def test_a_model_busy_for_somebody_else_stays():
    async with node_of("a", gib=10) as node:
        node.in_flight["a"] = 1
        async with running(node, models=specs("a", "b"), max_wait_s=0.5) as gateway:
            await gateway.refused(503, "model_loading", model="b")

            assert node.counts["unload"] == 0


async def test_a_pinned_model_stays():
    models = [*specs("a", pinned_on=("node0",)), *specs("b")]
    async with node_of("a", gib=10) as node:
        async with running(node, models=models, max_wait_s=0.5) as gateway:
            await gateway.refused(503, "model_loading", model="b")

            assert node.counts["unload"] == 0


async def test_a_model_stays_for_its_minimum_residency():
    async with node_of(gib=10) as node:
        models = specs("a", "b")
        async with running(node, models=models, min_residency_s=0.6) as gateway:
            await gateway.ask("a")
            wanted = asyncio.create_task(gateway.ask("b"))
            await until(lambda: gateway.waiting == 1)
            await gateway.ask("a")
            assert node.counts["unload"] == 0

            await wanted

            assert list(node.models) == ["b"]


async def test_a_victim_that_becomes_busy_at_the_last_moment_is_not_a_failure():
    async with node_of("a", gib=10) as node, running(node, models=specs("a", "b")) as gateway:
        node.unload_error = ModelBusy("a has 1 requests in flight")
        wanted = asyncio.create_task(gateway.ask("b"))
        await until(lambda: node.counts["unload"] == 1)
        assert (await gateway.ask("a"))["headers"]["x-cortex-node"] == "node0"
        node.unload_error = None

        await wanted

        assert list(node.models) == ["b"]


async def test_two_cold_models_do_not_count_on_the_same_room():
    async with node_of("a", gib=20) as node, running(node, models=specs(*"abc")) as gateway:
        node.may_load.clear()
        asked = [asyncio.create_task(gateway.ask(model)) for model in "bc"]
        await until(lambda: node.counts["load"] == 2)
        node.may_load.set()

        await asyncio.gather(*asked)

        assert sorted(node.models) == ["b", "c"]
        assert (node.counts["load"], node.counts["unload"]) == (2, 1)


async def test_two_cold_models_take_different_devices():
    async with FakeNeuron(sizes=SIZES, vram_mb=10 * GIB, devices=2) as node:
        async with running(node, models=specs("a", "b")) as gateway:
            node.may_load.clear()
            asked = [asyncio.create_task(gateway.ask(model)) for model in "ab"]
            await until(lambda: node.counts["load"] == 2)
            node.may_load.set()
            await asyncio.gather(*asked)

            assert sorted(model.devices for model in node.models.values()) == [(0,), (1,)]


async def test_a_model_on_two_devices_needs_its_share_on_each():
    sizes = {"old": 8 * GIB, "wide": 16 * GIB}
    async with FakeNeuron(["old"], sizes=sizes, vram_mb=10 * GIB, devices=2) as node:
        models = [ModelSpec(id="wide", vram_mb=16 * GIB, min_devices=2)]
        async with running(node, models=models) as gateway:
            await gateway.ask("wide")

            assert node.models["wide"].devices == (1, 0)
            assert list(node.models) == ["wide"]


@pytest.mark.parametrize("seed", range(3))
async def test_random_arrivals_are_all_served_within_memory(seed):
    dice = random.Random(seed)
    nodes = [node_of(gib=20), node_of(gib=30)]
    async with nodes[0], nodes[1], running(*nodes, models=specs(*SIZES), max_wait_s=20) as gateway:

        async def arrive(number: int) -> None:
            await asyncio.sleep(number * 0.01)
            await gateway.ask(dice.choice("abcdefgh"))

        async def watch() -> None:
            while True:
                assert nodes[0].used_mb(0) <= 20 * GIB
                assert nodes[1].used_mb(0) <= 30 * GIB
                await asyncio.sleep(0.002)

        watching = asyncio.create_task(watch())
        try:
            await asyncio.gather(*(arrive(number) for number in range(100)))
        finally:
            watching.cancel()
        assert watching.cancelled() or not watching.done()
        assert gateway.counted("cortex_requests_total", outcome="ok") == 100
