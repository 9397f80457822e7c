"""Requests wait for a seat in turn, and models for room."""

from __future__ import annotations

import asyncio
from time import perf_counter

import pytest

from cortex.errors import DeviceUnavailable
from cortex.fleet.model import ModelSpec
from cortex.testing import FakeNeuron, until
from tests.gateway.running import Wire, chat, running


async def test_a_model_that_waits_takes_a_turn_from_one_that_is_always_in_use():
    models = [ModelSpec(id=name, vram_mb=900) for name in ("a", "b")]
    async with FakeNeuron(sizes={"a": 900, "b": 900}, vram_mb=1000) as node:
        async with running(node, models=models, max_turn_s=0.2) as gateway:
            node.token_s = 0.02
            over = asyncio.Event()

            async def keep_asking() -> int:
                count = 0
                while not over.is_set():
                    await gateway.ask("a")
                    count += 1
                return count

            busy = [asyncio.create_task(keep_asking()) for _ in range(3)]
            await until(lambda: node.counts["chat"] >= 3)
            answer = await gateway.ask("b")
            over.set()
            await asyncio.gather(*busy)

    assert answer["headers"]["x-cortex-route"] == "cold-load"
    assert node.counts["cancelled"] == 0


async def test_requests_beyond_a_models_seats_wait_here_for_their_turn():
    async with FakeNeuron(["m"]) as node:
        node.max_in_flight, node.ending = 2, "hang"
        async with running(node) as gateway:
            clients = [await Wire.to(gateway.address) for _ in range(3)]
            for client in clients:
                client.post(chat("m"))
            await until(lambda: gateway.waiting == 1 and node.counts["chat"] == 2)

            node.ending = "whole"
            clients[0].leave()
            status, headers = await clients[2].head()

            assert (status, headers["x-cortex-route"]) == (200, "queued")
            for client in clients[1:]:
                client.leave()


async def test_who_waits_too_long_for_a_turn_is_told_the_position():
    async with FakeNeuron(["m"]) as node:
        node.max_in_flight, node.ending = 1, "hang"
        async with running(node, max_wait_s=0.3) as gateway, await Wire.to(gateway.address) as one:
            one.post(chat("m"))
            await until(lambda: node.counts["chat"] == 1)

            error = await gateway.refused(503, "queue_timeout")

            assert error["position"] == 1
            assert error["headers"]["retry-after"] == "5"
            assert gateway.waiting == 0


@pytest.mark.promises
async def test_what_is_too_much_is_refused_at_once_and_then_all_is_as_before(promise):
    async with FakeNeuron(["m"]) as node:
        node.max_in_flight, node.ending = 2, "late"
        async with running(node, max_depth=3) as gateway:
            await until(lambda: gateway.counted("cortex_node_up") == 1)
            taken = [asyncio.create_task(gateway.ask()) for _ in range(5)]
            await until(lambda: gateway.waiting == 3 and node.counts["chat"] == 2)

            began = perf_counter()
            for _ in range(20):
                error = await gateway.refused(429, "queue_full")
                assert error["headers"]["retry-after"] == "5"
            each_ms = (perf_counter() - began) * 1e3 / 20
            node.may_answer.set()
            answers = await asyncio.gather(*taken)
            again = await gateway.ask()
    promise(12, f"queue full: refused in {each_ms:.1f} ms, and {len(answers)} of 5 answered")

    assert again["headers"]["x-cortex-route"] == "loaded"
    assert node.counts["chat"] == 6


async def test_a_client_that_leaves_the_queue_gives_up_its_place():
    async with FakeNeuron(["m"]) as node:
        node.max_in_flight, node.ending = 1, "hang"
        async with running(node) as gateway, await Wire.to(gateway.address) as one:
            one.post(chat("m"))
            await until(lambda: node.counts["chat"] == 1)
            two = await Wire.to(gateway.address)
            two.post(chat("m"))
            await until(lambda: gateway.waiting == 1)

            two.leave()
            await until(lambda: gateway.waiting == 0)
            one.leave()

            await until(lambda: gateway.in_flight() == 0)
            assert node.counts["chat"] == 1


async def test_a_node_that_wants_a_rest_is_left_alone_while_another_can_answer():
    async with FakeNeuron(["m"]) as tired, FakeNeuron(["m"]) as fresh:
        async with running(tired, fresh) as gateway:
            tired.refusal = DeviceUnavailable("the device recovers", retry_after_s=30)
            answers = [await gateway.ask() for _ in range(4)]
            assert {answer["headers"]["x-cortex-node"] for answer in answers} == {"node1"}
            assert tired.counts["chat"] == 1

            fresh.refusal = DeviceUnavailable("this one, too", retry_after_s=30)
            await gateway.refused(503, "device_unavailable")
            tired.refusal = None
            await gateway.ask()  # nobody else is left
