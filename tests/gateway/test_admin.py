"""What an operator sees of requests and nodes, and does to them by hand."""

from __future__ import annotations

import asyncio

import pytest

from cortex.fleet.model import ModelSpec
from cortex.testing import FakeNeuron, until
from tests.gateway.running import Wire, chat, running

M, B = ModelSpec(id="m", vram_mb=600), ModelSpec(id="b", vram_mb=600)


async def states(gateway) -> list[str]:
    return [row["state"] for row in (await gateway.get("/api/v1/requests"))["requests"]]


# Requests.


async def test_a_request_is_shown_from_its_queue_to_its_end():
    async with FakeNeuron() as node, running(node) as gateway:
        node.may_load.clear()
        asking = asyncio.create_task(gateway.stream())
        await until(lambda: node.counts["load"] == 1)
        assert await states(gateway) == ["loading"]

        node.token_s = 0.2
        node.may_load.set()
        await until(lambda: node.in_flight["m"])
        while await states(gateway) != ["answering"]:
            await asyncio.sleep(0.01)
        [row] = (await gateway.get("/api/v1/requests"))["requests"]
        assert (row["node"], row["model"], row["principal"]) == ("node0", "m", "anonymous")
        await asking

        [row] = (await gateway.get("/api/v1/requests"))["requests"]
        assert (row["state"], row["status"]) == ("ok", 200)
        assert (row["prompt_tokens"], row["completion_tokens"]) == (7, 3)
        assert 0 < row["ttft_s"] < row["duration_s"] < row["age_s"] + 1


async def test_a_request_that_waits_for_a_load_can_be_cancelled_and_the_load_goes_on():
    async with FakeNeuron() as node, running(node) as gateway:
        node.may_load.clear()
        body, headers = chat("m"), {"x-request-id": "r1"}
        url = f"{gateway.url}/v1/chat/completions"
        asking = asyncio.create_task(gateway.client.post(url, data=body, headers=headers))
        await until(lambda: gateway.waiting == 1)

        assert await delete(gateway, "r1") == {"id": "r1", "cancelled": 1}

        async with await asking as response:
            assert response.status == 499
            assert (await response.json())["error"]["code"] == "request_cancelled"
        await until(lambda: gateway.waiting == 0)
        assert [(r.outcome, r.status) for r in gateway.records] == [("cancelled", 499)]
        node.may_load.set()
        await gateway.ask()
        assert node.counts["load"] == 1


async def test_a_stream_that_is_cancelled_ends_with_an_error_event_and_stops_at_its_node():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        node.answer, node.token_s = "word " * 200, 0.02
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m", stream=True), headers="x-request-id: r1\r\n")
            assert (await client.head())[0] == 200
            await client.until(b"word")
            await delete(gateway, "r1")
            rest = await client.until(b"0\r\n\r\n")

            client.post(chat("m", stream=True, max_tokens=1))  # the connection is as good as new
            node.answer = "one"
            assert (await client.head())[0] == 200

        assert b"request_cancelled" in rest
        assert b"[DONE]" not in rest
        await until(lambda: node.counts["cancelled"] >= 1)
        assert gateway.records[0].outcome == "cancelled"


async def test_a_request_in_a_queue_can_be_cancelled_and_takes_no_seat():
    one = FakeNeuron(["m"])
    one.max_in_flight, one.ending = 1, "hang"
    async with one as node, running(node) as gateway:
        first = asyncio.create_task(gateway.ask())
        await until(lambda: node.in_flight["m"] == 1)
        url, headers = f"{gateway.url}/v1/chat/completions", {"x-request-id": "r2"}
        second = asyncio.create_task(gateway.client.post(url, data=chat("m"), headers=headers))
        await until(lambda: gateway.gateway.queues.length("m") == 1)

        await delete(gateway, "r2")

        assert (await second).status == 499
        assert gateway.gateway.queues.length("m") == 0
        assert gateway.in_flight() == 1
        first.cancel()


async def test_a_stream_that_only_got_keep_alives_ends_with_an_error_event(monkeypatch):
    monkeypatch.setattr("cortex.gateway.hold.HOLD_S", 0.0)
    async with FakeNeuron() as node, running(node) as gateway:
        node.may_load.clear()
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m", stream=True), headers="x-request-id: r1\r\n")
            assert (await client.head())[0] == 200
            await delete(gateway, "r1")
            rest = await client.until(b"0\r\n\r\n")

        assert b"request_cancelled" in rest
        assert b"[DONE]" not in rest


async def test_an_id_that_is_not_under_way_is_a_404():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        answer = await delete(gateway, "nobody", 404)

    assert answer["error"]["code"] == "not_found"


async def delete(gateway, request_id: str, status: int = 200) -> dict:
    async with gateway.client.delete(f"{gateway.url}/api/v1/requests/{request_id}") as response:
        assert response.status == status
        return await response.json()


# Nodes.


async def test_a_drained_node_gets_no_new_request_and_finishes_its_stream():
    async with FakeNeuron(["m"]) as a, FakeNeuron(["m"]) as b, running(a, b) as gateway:
        a.answer, a.token_s = "word " * 30, 0.02
        await gateway.post("/api/v1/nodes/node1/drain")
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m", stream=True))
            assert (await client.head())[1]["x-cortex-node"] == "node0"
            await client.until(b"word")
            await gateway.post("/api/v1/nodes/node1/resume")
            drained = await gateway.post("/api/v1/nodes/node0/drain")
            assert drained == {"node": "node0", "drained": True, "in_flight": 1}

            nodes = [(await gateway.ask())["headers"]["x-cortex-node"] for _ in range(4)]
            assert nodes == ["node1"] * 4
            assert (await client.until(b"0\r\n\r\n")).count(b"[DONE]") == 1

        fleet = await gateway.get("/api/v1/fleet")
        shown = [(n["name"], n["drained"], n["in_flight"]) for n in fleet["nodes"]]
        assert shown == [("node0", True, 0), ("node1", False, 0)]


async def test_a_drained_node_gets_no_load():
    async with FakeNeuron() as a, FakeNeuron() as b, running(a, b) as gateway:
        await gateway.post("/api/v1/nodes/node0/drain")

        assert (await gateway.ask())["headers"]["x-cortex-node"] == "node1"
        assert a.counts["load"] == 0


async def test_who_waits_for_a_model_only_a_drained_node_has_gets_it_elsewhere():
    async with FakeNeuron(["m"]) as a, FakeNeuron() as b, running(a, b) as gateway:
        await gateway.post("/api/v1/nodes/node0/drain")

        assert (await gateway.ask())["headers"]["x-cortex-node"] == "node1"
        assert b.counts["load"] == 1


async def test_a_fleet_that_is_drained_refuses_at_once_and_says_why():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        await gateway.post("/api/v1/nodes/node0/drain")
        error = await gateway.refused(503, "no_node_available")
        assert "node0: it is drained" in error["message"]

        await gateway.post("/api/v1/nodes/node0/resume")
        await gateway.ask()


async def test_an_unknown_node_is_a_404_with_the_nearest_name():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        answer = await gateway.post("/api/v1/nodes/nod0/drain", 404)

    assert answer["error"]["code"] == "not_found"
    assert "node0" in answer["error"]["message"] + answer["error"].get("hint", "")


# Pins.


async def test_a_pinned_model_is_not_evicted_until_it_is_unpinned():
    sizes = {"m": 600, "b": 600}
    async with (
        FakeNeuron(["m"], sizes=sizes, vram_mb=1000) as node,
        running(node, models=[M, B], max_wait_s=0.3) as gateway,
    ):
        pinned = await gateway.post("/api/v1/models/m/pin")
        assert pinned == {"model_id": "m", "pinned_on": ["node0"]}
        assert (await gateway.get("/api/v1/fleet"))["pins"] == {"m": ["node0"]}
        await gateway.ask("b", 503)
        assert set(node.models) == {"m"}

        assert (await gateway.post("/api/v1/models/m/unpin"))["pinned_on"] == []
        await gateway.ask("b")
        assert set(node.models) == {"b"}


async def test_a_pin_says_where_a_model_may_be_loaded():
    async with FakeNeuron() as a, FakeNeuron() as b, running(a, b) as gateway:
        await gateway.post("/api/v1/models/m/pin", node="node1")

        assert (await gateway.ask())["headers"]["x-cortex-node"] == "node1"
        assert a.counts["load"] == 0


async def test_what_models_toml_pins_stays_pinned():
    spec = ModelSpec(id="m", pinned_on=("node0",))
    async with FakeNeuron() as a, FakeNeuron() as b, running(a, b, models=[spec]) as gateway:
        both = await gateway.post("/api/v1/models/m/pin", node="node1")
        assert both["pinned_on"] == ["node0", "node1"]
        refused = await gateway.post("/api/v1/models/m/unpin", 400, node="node0")
        assert refused["error"]["message"] == "models.toml pins m on node0"

        one = await gateway.post("/api/v1/models/m/unpin", node="node1")
        assert one["pinned_on"] == ["node0"]


async def test_to_pin_a_model_where_it_is_it_has_to_be_somewhere():
    async with FakeNeuron() as node, running(node) as gateway:
        answer = await gateway.post("/api/v1/models/m/pin", 404)

    assert answer["error"]["message"] == "model 'm' is not loaded on any node"


# What would be chosen.


async def explained(gateway, model: str = "m") -> dict:
    return await gateway.get(f"/api/v1/explain?model={model}")


def verdicts(answer: dict) -> dict[str, str]:
    return {row["node"]: row["verdict"] for row in answer["nodes"]}


async def test_it_explains_who_would_answer_and_disturbs_no_turn():
    async with (
        FakeNeuron(["m"]) as a,
        FakeNeuron(["m"]) as b,
        running(a, b, strategy="round-robin") as gateway,
    ):
        answers = [await explained(gateway) for _ in range(3)]
        assert {(a["how"], a["node"]) for a in answers} == {("loaded", "node0")}
        assert verdicts(answers[0]) == {"node0": "serves", "node1": "serves"}

        assert (await gateway.ask())["headers"]["x-cortex-node"] == "node0"
        assert (await explained(gateway))["node"] == "node1"


async def test_it_explains_where_a_model_would_go_and_what_for_it():
    sizes = {"b": 600}
    async with (
        FakeNeuron(["b"], sizes=sizes, vram_mb=1000) as full,
        FakeNeuron(vram_mb=500) as small,
        FakeNeuron() as gone,
        running(full, small, gone, models=[M, B]) as gateway,
    ):
        await gateway.post("/api/v1/nodes/node2/drain")
        answer = await explained(gateway)

        assert (answer["how"], answer["node"]) == ("cold-load", "node0")
        assert verdicts(answer) == {"node0": "evicts", "node1": "no", "node2": "no"}
        first, second, third = answer["nodes"]
        assert (first["evict"], first["devices"]) == (["b"], [0])
        assert second["reason"] == "it needs a device of 600 MiB, the largest here has 500 MiB"
        assert third["reason"] == "it is drained"
        assert full.counts["load"] + full.counts["unload"] == 0

        await gateway.ask()
        assert set(full.models) == {"m"}


async def test_it_explains_a_load_under_way_and_a_model_that_can_go_nowhere():
    sizes = {"m": 600, "b": 600}
    async with (
        FakeNeuron(sizes=sizes, vram_mb=700) as node,
        running(node, models=[M, B]) as gateway,
    ):
        node.may_load.clear()
        asking = asyncio.create_task(gateway.ask())
        await until(lambda: node.counts["load"] == 1)
        answer = await explained(gateway)
        assert (answer["how"], answer["node"], answer["queued"]) == ("joined-load", "node0", 1)
        node.may_load.set()
        await asking

        await gateway.post("/api/v1/models/m/pin")
        answer = await explained(gateway, "b")
        assert (answer["how"], answer["node"]) == ("nowhere", None)
        assert answer["reason"].startswith("node0: its devices are full of models that are pinned")


@pytest.mark.parametrize("model", ["", "typo"])
async def test_an_unknown_model_cannot_be_explained(model):
    async with FakeNeuron() as node, running(node) as gateway:
        path = f"{gateway.url}/api/v1/explain?model={model}"
        async with gateway.client.get(path) as response:
            assert response.status == 404
            assert (await response.json())["error"]["code"] == "model_not_found"
