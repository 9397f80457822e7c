"""Requests wait for a seat in turn, and models for room."""

from __future__ import annotations

import asyncio
from time import perf_counter

import pytest

from cortex.connection import taken_of
from cortex.errors import DeviceUnavailable
from cortex.fleet.model import ModelSpec
from cortex.gateway import keeper, relay
from cortex.gateway.keeper import UNREAD_S
from cortex.gateway.relay import Exchange
from cortex.testing import FakeNeuron, until
from tests.gateway.running import Running, Wire, chat, running, ticks

LONG = " ".join(["x" * 16_000] * 1_000)  # more than waits anywhere on its way


@pytest.fixture(autouse=True)
def looked_at_often(monkeypatch) -> None:
    monkeypatch.setattr(keeper, "EVERY_S", 0.02)


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


async def paused(node: FakeNeuron, gateway: Running, client: Wire) -> Exchange:
    """Have *client* ask for a long stream and read nothing of it; return its exchange."""
    node.answer = LONG
    client.post(chat("m", stream=True))
    await client.head()
    [held] = gateway.gateway.nodes
    [exchange] = held.exchanges
    await until(lambda: exchange._is_paused, 20)
    await seen(exchange)
    node.answer = "one"  # for the next
    return exchange


async def seen(exchange: Exchange) -> None:
    """Wait until the keeper has looked at how much of an answer is taken."""
    await until(lambda: exchange._taken == taken_of(exchange._client))


class Clock:
    """What exchanges go by, ahead of time."""

    ahead_s = 0.0

    def __call__(self) -> float:
        return perf_counter() + self.ahead_s


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(relay, "perf_counter", clock)
    return clock


async def unread(exchange: Exchange, gateway: Running, clock: Clock) -> None:
    """Let the time pass for which nothing is read; at first the kernel makes a little more room."""
    while exchange.unread_s() <= UNREAD_S and not exchange._client.is_closing():
        clock.ahead_s += UNREAD_S + 1
        await ticks(gateway)


@pytest.mark.promises
async def test_who_reads_nothing_gives_up_the_seat_that_another_waits_for(clock, promise, caplog):
    async with FakeNeuron(["m"]) as node:
        node.max_in_flight = 1
        async with running(node) as gateway, await Wire.slow(gateway.address) as idle:
            exchange = await paused(node, gateway, idle)
            clock.ahead_s = UNREAD_S / 2
            asking = asyncio.create_task(gateway.ask())
            await until(lambda: gateway.waiting == 1)
            await ticks(gateway)
            assert (gateway.waiting, gateway.in_flight()) == (1, 1)

            await unread(exchange, gateway, clock)
            answer = await asking
            promise(13, f"who reads nothing for {UNREAD_S:g} s gives its seat to another")

            assert answer["headers"]["x-cortex-route"] == "queued"
            await until(lambda: not node.in_flight["m"] and len(gateway.records) == 2)
            assert [record.outcome for record in gateway.records] == ["cancelled", "ok"]
            assert exchange._client.is_closing()
            assert gateway.counted("cortex_request_cancels_total", phase="answering") == 1
            assert "is broken off: its client has read nothing for" in caplog.text


async def test_who_reads_nothing_is_left_alone_while_nobody_waits(clock):
    async with FakeNeuron(["m"]) as node:
        node.max_in_flight = 1
        async with running(node) as gateway, await Wire.slow(gateway.address) as idle:
            exchange = await paused(node, gateway, idle)
            await unread(exchange, gateway, clock)
            await ticks(gateway)

            assert gateway.in_flight() == 1
            assert not exchange._client.is_closing()


async def test_who_reads_slowly_keeps_the_seat_that_another_waits_for(clock):
    async with FakeNeuron(["m"]) as node:
        node.max_in_flight = 1
        async with running(node) as gateway, await Wire.slow(gateway.address) as slow:
            exchange = await paused(node, gateway, slow)
            asking = asyncio.create_task(gateway.ask())
            await until(lambda: gateway.waiting == 1)
            for _ in range(6):
                taken = taken_of(exchange._client)
                while taken_of(exchange._client) == taken:
                    await slow.exactly(1024)
                await seen(exchange)
                clock.ahead_s += UNREAD_S / 2
                await ticks(gateway)

            assert (gateway.waiting, gateway.in_flight()) == (1, 1)
            await unread(exchange, gateway, clock)
            await asking


async def test_who_reads_nothing_makes_room_for_a_model_that_waits_for_it(clock):
    models = [ModelSpec(id=name, vram_mb=900) for name in ("m", "b")]
    async with FakeNeuron(["m"], sizes={"m": 900, "b": 900}, vram_mb=1000) as node:
        async with running(node, models=models, max_turn_s=0.1) as gateway:
            async with await Wire.slow(gateway.address) as idle:
                exchange = await paused(node, gateway, idle)
                asking = asyncio.create_task(gateway.ask("b"))
                [held] = gateway.gateway.nodes
                await until(lambda: "m" in held.closing)
                await ticks(gateway)
                assert gateway.in_flight() == 1

                await unread(exchange, gateway, clock)
                answer = await asking

    assert answer["headers"]["x-cortex-route"] == "cold-load"
