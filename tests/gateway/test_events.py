"""Who listens to the gateway gets a snapshot, and then what changes."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from cortex import events
from cortex.events import Events
from cortex.testing import FakeNeuron, until
from tests.gateway.running import running
from tests.neuron.serving import Listener


@asynccontextmanager
async def listening(gateway):
    async with gateway.client.get(f"{gateway.url}/api/v1/events") as response:
        assert response.content_type == "text/event-stream"
        yield Listener(response)


async def test_a_listener_gets_a_snapshot_and_then_a_load_and_the_request():
    async with FakeNeuron() as node, running(node) as gateway, listening(gateway) as listener:
        name, fleet = await listener.next()
        assert (name, [n["name"] for n in fleet["nodes"]]) == ("snapshot", ["node0"])

        node.may_load.clear()
        asking = asyncio.create_task(gateway.ask())
        assert (await listener.until("load_progress", model="m"))["waiting"] == 1
        node.may_load.set()
        answer = await asking

        loaded = await listener.until("model", node="node0")
        while loaded["model"]["status"] != "loaded":
            loaded = await listener.until("model", node="node0")
        assert answer["choices"]


async def test_a_request_is_told_once_it_is_over():
    async with (
        FakeNeuron(["m"]) as node,
        running(node) as gateway,
        listening(gateway) as listener,
    ):
        await listener.next()
        await gateway.ask()

        told = await listener.until("request")

        assert (told["state"], told["model"], told["node"]) == ("ok", "m", "node0")
        assert told["completion_tokens"] == 3


async def test_a_drain_an_unload_and_a_reload_are_told():
    async with (
        FakeNeuron(["m"]) as node,
        running(node) as gateway,
        listening(gateway) as listener,
    ):
        await listener.next()
        await gateway.post("/api/v1/nodes/node0/drain")
        assert (await listener.until("node", node="node0"))["drained"] is True

        await gateway.post("/api/v1/models/m/unload")
        while (await listener.until("model", node="node0"))["model"]["status"] != "unloaded":
            pass

        await gateway.post("/api/v1/reload")
        assert await listener.until("reload") == {"changed": [], "restart": []}


async def test_a_node_that_dies_is_told():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        async with listening(gateway) as listener:
            await listener.next()
            await node.stop()
            assert (await listener.until("node", healthy=False))["node"] == "node0"
            [card] = (await gateway.get("/v1/models"))["data"]
            [where] = card["locations"]
            assert (card["loaded"], where["status"]) == (False, "unreachable")


async def test_a_silent_stream_has_keep_alives(monkeypatch):
    monkeypatch.setattr(events, "KEEP_ALIVE_S", 0.02)
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        async with gateway.client.get(f"{gateway.url}/api/v1/events") as response:
            async with asyncio.timeout(5):
                await response.content.readuntil(b": keep-alive\n\n")


async def test_a_drain_of_the_gateway_ends_the_stream():
    async with (
        FakeNeuron(["m"]) as node,
        running(node) as gateway,
        listening(gateway) as listener,
    ):
        await listener.next()
        await gateway.gateway.drain(0)

        await listener.rest()
        await until(lambda: not len(gateway.gateway.events))


def test_a_listener_that_is_too_far_behind_is_dropped_with_a_word():
    fan = Events()
    with fan.listener() as slow:
        for number in range(events.MAX_BEHIND + 5):
            fan.publish("n", number)

        said = [slow.get_nowait() for _ in range(slow.qsize())]

    assert len(said) == events.MAX_BEHIND + 2
    assert said[-2:] == [b'event: dropped\ndata: {"reason":"1024 events behind"}\n\n', None]
    assert not len(fan)
