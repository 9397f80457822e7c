"""One load a model, whoever asks; what goes wrong reaches all who wait."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable
from time import monotonic
from typing import TypeVar

import aiohttp
import attrs
import pytest
from aiohttp import web
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.test_utils import TestServer

from cortex.errors import RepoFetchFailed, UnsupportedArchitecture
from cortex.fleet.model import ModelSpec
from cortex.gateway import poller
from cortex.gateway.neuron_client import cause_of
from cortex.gateway.poller import poll
from cortex.testing import FakeNeuron, until
from tests.gateway.running import Wire, chat, running

T = TypeVar("T")
CAUSE = "the repository 'org/typo' does not exist"


@pytest.mark.promises
async def test_200_requests_for_a_cold_model_cause_one_load_and_are_all_answered(promise):
    async with FakeNeuron() as node, running(node) as gateway:
        node.may_load.clear()
        asking = [asyncio.create_task(timed(gateway.ask())) for _ in range(200)]
        await until(lambda: gateway.waiting == 200)
        ready = monotonic()
        node.may_load.set()

        answers, ends = zip(*await asyncio.gather(*asking), strict=True)

        took = sorted(1e3 * (end - ready) for end in ends)
        figure = f"{node.counts['load']} load for 200 requests (asked: 1); the first answers"
        figure += f" {took[0]:.0f} ms after it was ready, half after {took[100]:.0f} (asked: 100)"
        promise(2, f"{figure}, all after {took[-1]:.0f}")
        assert took[-1] < 20_000
        assert {a["choices"][0]["message"]["content"] for a in answers} == {"one two three"}
        routes = [answer["headers"]["x-cortex-route"] for answer in answers]
        assert (routes.count("cold-load"), routes.count("joined-load")) == (1, 199)
        assert node.counts["load"] == 1
        assert gateway.counted("cortex_cold_starts_total") == 1
        assert gateway.counted("cortex_requests_total", outcome="ok") == 200


async def timed(asked: Awaitable[T]) -> tuple[T, float]:
    """Return an answer, and when it was there."""
    return await asked, monotonic()


class Slow(FakeNeuron):
    """A neuron whose host is busy."""

    def __init__(self, *models):
        super().__init__(models)
        self.may_tell = asyncio.Event()

    async def _health(self, request):
        await self.may_tell.wait()
        return await super()._health(request)


async def test_a_node_that_has_not_answered_yet_is_waited_for(monkeypatch):
    monkeypatch.setattr(poller, "FIRST_ROUND_S", 0.05)
    async with Slow("m") as node, running(node) as gateway:
        asking = asyncio.create_task(gateway.ask())
        await until(lambda: gateway.waiting == 1)
        node.may_tell.set()

        assert (await asking)["headers"]["x-cortex-node"] == "node0"
        assert node.counts["load"] == 0


async def test_a_name_is_unknown_only_once_every_node_has_said_what_it_has(monkeypatch):
    monkeypatch.setattr(poller, "FIRST_ROUND_S", 0.05)
    async with Slow("m") as node, running(node, models=[]) as gateway:
        error = await gateway.refused(503, "no_node_available")
        node.may_tell.set()
        await until(lambda: not any(node.is_new for node in gateway.gateway.nodes))
        await gateway.ask()
        await gateway.refused(404, "model_not_found", "n")

    assert error["message"] == "no model is called 'm' so far; node0 has not answered yet"
    assert error["headers"]["retry-after"] == "5"


async def test_a_waiter_that_leaves_does_not_stop_the_load():
    async with FakeNeuron() as node, running(node) as gateway:
        node.may_load.clear()
        first = await Wire.to(gateway.address)
        first.post(chat("m"))
        await until(lambda: gateway.waiting == 1)
        second = asyncio.create_task(gateway.ask())
        await until(lambda: gateway.waiting == 2)

        first.leave()
        await until(lambda: gateway.waiting == 1)
        node.may_load.set()

        assert (await second)["headers"]["x-cortex-route"] == "joined-load"
        assert node.counts["load"] == 1
        await until(lambda: len(gateway.records) == 2)
        assert [record.outcome for record in gateway.records] == ["cancelled", "ok"]


async def test_a_load_goes_on_when_its_only_waiter_leaves():
    async with FakeNeuron() as node, running(node) as gateway:
        node.may_load.clear()
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m"))
            await until(lambda: node.counts["load"] == 1)
        await until(lambda: gateway.waiting == 0)
        node.may_load.set()

        await until(lambda: not gateway.gateway.loads.views())
        answer = await gateway.ask()

        assert answer["headers"]["x-cortex-route"] == "loaded"
        assert node.counts["load"] == 1


@pytest.mark.promises
async def test_the_real_cause_of_a_failed_load_reaches_all_waiters(promise):
    async with FakeNeuron() as node, running(node) as gateway:
        node.load_error_late = RepoFetchFailed(CAUSE)
        node.may_load.clear()
        asking = [
            asyncio.create_task(timed(gateway.refused(503, "load_failed"))) for _ in range(100)
        ]
        await until(lambda: gateway.waiting == len(asking))
        failed = monotonic()
        node.may_load.set()
        errors, ends = zip(*await asyncio.gather(*asking), strict=True)

        took = sorted(1e3 * (end - failed) for end in ends)
        figure = f"{took[50]:.0f} ms at p50, {took[-1]:.0f} for all 100"
        promise(3, f"the cause of a failed load reached who waited in {figure} (asked: 50)")
        assert took[-1] < 10_000
        for error in errors:
            assert CAUSE in error["message"]
            assert error["cause"]["kind"] == "repo_fetch_failed"
            assert error["headers"]["retry-after"] == "10"
        assert node.counts["load"] == 1


async def test_a_failed_load_is_tried_on_one_other_node():
    async with FakeNeuron() as bad, FakeNeuron() as good, running(bad, good) as gateway:
        bad.load_error = RepoFetchFailed(CAUSE)

        answer = await gateway.ask()

        assert answer["headers"]["x-cortex-node"] == "node1"
        assert (bad.counts["load"], good.counts["load"]) == (1, 1)


async def test_what_a_node_cannot_run_is_told_with_what_it_can():
    details = {"model_type": "resnet", "supported": ["llama", "qwen3"]}
    async with FakeNeuron() as node, running(node) as gateway:
        node.load_error = UnsupportedArchitecture("cannot run 'resnet'", details=details)

        error = await gateway.refused(503, "load_failed")

        assert error["message"] == "node0: cannot run 'resnet'"
        assert error["cause"]["kind"] == "unsupported_architecture"
        assert details.items() <= error["cause"].items()


async def test_two_nodes_are_tried_and_no_third():
    async with (
        FakeNeuron() as a,
        FakeNeuron() as b,
        FakeNeuron() as c,
        running(a, b, c) as gateway,
    ):
        for node in (a, b, c):
            node.load_error = UnsupportedArchitecture(f"no {node.endpoint}")

        error = await gateway.refused(503, "load_failed")

        assert error["message"] == f"node0: no {a.endpoint}; node1: no {b.endpoint}"
        assert [node.counts["load"] for node in (a, b, c)] == [1, 1, 0]


async def test_a_failure_is_remembered_for_a_while_and_not_asked_for_again(monkeypatch):
    async with FakeNeuron() as node, running(node) as gateway:
        node.load_error = RepoFetchFailed(CAUSE)
        for _ in range(3):
            await gateway.refused(503, "load_failed")
        assert node.counts["load"] == 1

        monkeypatch.setattr(gateway.gateway.nodes, "clock", lambda: monotonic() + 11)
        node.load_error = None
        await gateway.ask()
        assert node.counts["load"] == 2


async def test_a_failure_is_forgotten_when_an_operator_loads_the_model():
    async with FakeNeuron() as node, running(node) as gateway:
        node.load_error = RepoFetchFailed(CAUSE)
        await gateway.refused(503, "load_failed")
        node.load_error = None

        answer = await gateway.post("/api/v1/models/m/load")

        assert answer == {"status": "loaded", "model_id": "m", "node": "node0"}
        await gateway.ask()


async def test_a_load_on_a_node_by_hand_that_fails_is_not_the_failure_of_those_who_ask():
    async with FakeNeuron() as bad, FakeNeuron() as good, running(bad, good) as gateway:
        bad.load_error = RepoFetchFailed(CAUSE)
        error = await gateway.post("/api/v1/models/m/load", 503, node="node0")
        assert error["error"]["message"] == f"node0: {CAUSE}"

        answer = await gateway.ask()

        assert answer["headers"]["x-cortex-node"] == "node1"


async def test_a_load_on_a_node_by_hand_happens_there_though_another_is_under_way():
    async with FakeNeuron() as a, FakeNeuron() as b, running(a, b) as gateway:
        a.may_load.clear()
        asked = asyncio.create_task(gateway.ask())
        await until(lambda: a.counts["load"] == 1)
        by_hand = asyncio.create_task(gateway.post("/api/v1/models/m/load", node="node1"))
        await until(lambda: gateway.waiting == 2)
        a.may_load.set()

        assert (await by_hand)["node"] == "node1"
        await asked
        assert (a.counts["load"], b.counts["load"]) == (1, 1)


async def test_who_joins_a_load_by_hand_that_fails_is_served_by_another_node():
    async with FakeNeuron() as bad, FakeNeuron() as good, running(bad, good) as gateway:
        bad.may_load.clear()
        by_hand = asyncio.create_task(gateway.post("/api/v1/models/m/load", 503, node="node0"))
        await until(lambda: bad.counts["load"] == 1)
        asked = asyncio.create_task(gateway.ask())
        await until(lambda: gateway.waiting == 2)
        await bad.stop()

        assert "node0" in (await by_hand)["error"]["message"]
        assert (await asked)["headers"]["x-cortex-node"] == "node1"


async def test_a_load_that_is_called_off_by_force_tells_who_waits_and_leaves_nothing():
    async with FakeNeuron() as node, running(node) as gateway:
        node.may_load.clear()
        asked = asyncio.create_task(gateway.refused(503, "load_failed"))
        await until(lambda: "m" in gateway.gateway.nodes.get("node0").models)
        await gateway.post("/api/v1/models/m/unload", force=True)
        node.may_load.set()

        assert "the load of 'm' was cancelled" in (await asked)["message"]
        assert node.models == {}


async def test_what_nobody_may_evict_is_waited_for_and_the_wait_is_bounded():
    models = [
        ModelSpec(id="big", vram_mb=20_000, pinned_on=("node0",)),
        ModelSpec(id="m", vram_mb=8000),
    ]
    async with FakeNeuron(["big"], sizes={"big": 20_000}) as node:
        async with running(node, models=models, max_wait_s=0.3) as gateway:
            error = await gateway.refused(503, "model_loading")

            assert error["message"] == "m is not loaded after 0.3 s"
            assert error["state"] == "waiting for room"
            assert node.counts["unload"] == 0


async def test_a_full_queue_is_429():
    async with FakeNeuron() as node, running(node, max_depth=3) as gateway:
        node.may_load.clear()
        asking = [asyncio.create_task(gateway.ask()) for _ in range(3)]
        await until(lambda: gateway.waiting == 3)

        error = await gateway.refused(429, "queue_full")

        assert error["message"] == "3 requests wait for m already"
        assert error["headers"]["retry-after"] == "5"
        node.may_load.set()
        await asyncio.gather(*asking)


async def test_what_never_fits_is_422_with_the_numbers():
    models = [ModelSpec(id="m", vram_mb=80_000)]
    async with FakeNeuron(vram_mb=24_000) as node, running(node, models=models) as gateway:
        error = await gateway.refused(422, "model_not_feasible")

        assert error["message"] == (
            "no node can hold m: node0: it needs a device of 80000 MiB,"
            " the largest here has 24000 MiB"
        )
        assert node.counts["load"] == 0


async def test_a_neuron_that_knows_better_how_much_is_needed_is_believed():
    models = [ModelSpec(id="old", vram_mb=20_000), ModelSpec(id="m", vram_mb=1000)]
    sizes = {"old": 20_000, "m": 10_000}
    async with FakeNeuron(["old"], sizes=sizes) as node, running(node, models=models) as gateway:
        await gateway.ask()

        assert list(node.models) == ["m"]
        assert (node.counts["load"], node.counts["unload"]) == (2, 1)


async def test_an_unreachable_neuron_is_503_with_retry_after():
    async with FakeNeuron() as node:
        pass
    async with running(node) as gateway:
        error = await gateway.refused(503, "no_node_available")

        assert error["headers"]["retry-after"] == "5"
        assert f"{node.endpoint} does not answer: nobody listens there" in error["message"]


async def test_a_neuron_that_never_answered_is_told_in_the_log_once(caplog):
    async with FakeNeuron() as node:
        pass
    async with running(node) as gateway:
        [known] = gateway.gateway.nodes
        await poll(known, gateway.gateway.nodes)
        await poll(known, gateway.gateway.nodes)

    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    why = f"{node.endpoint} does not answer: nobody listens there"
    assert said.count(f"node {known.name}: {why}") == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [("<html>a proxy's page", ""), ("no such host\n", ": no such host"), ("", "")],
)
async def test_what_is_no_neuron_is_told_with_what_it_answers(body, said):
    async def answer(_):
        return web.Response(status=404, text=body)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server, running(str(server.make_url("/"))) as gateway:
        error = await gateway.refused(503, "no_node_available")

        assert error["message"].endswith(f"/ says: status 404 Not Found{said}")


def test_why_a_neuron_does_not_answer_is_said_without_what_is_ours():
    key = ConnectionKey("beast", 13131, False, True, None, None, None)
    unreachable = OSError(errno.EHOSTUNREACH, "Connect call failed ('10.0.0.1', 13131)")
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    for cause, said in ((unreachable, "No route to host"), (unknown, unknown.strerror)):
        assert cause_of(aiohttp.ClientConnectorError(key, cause)) == said
    assert cause_of(TimeoutError()) == "TimeoutError"


async def test_a_neuron_that_comes_back_is_used_at_once():
    async with FakeNeuron() as node:
        pass
    async with running(node) as gateway:
        await gateway.refused(503, "no_node_available")
        await node.start()
        await until(lambda: all(n.healthy for n in gateway.gateway.nodes), 2)

        await gateway.ask()
        await node.stop()


async def test_a_healthy_node_that_can_never_hold_it_is_not_waited_for():
    models = [ModelSpec(id="m", vram_mb=20_000)]
    async with FakeNeuron(vram_mb=8000) as small, FakeNeuron() as large:
        async with running(small, large, models=models) as gateway:
            await large.stop()
            await until(lambda: not gateway.gateway.nodes.get("node1").healthy)

            error = await gateway.refused(503, "no_node_available")

            assert "it needs a device of 20000 MiB" in error["message"]


async def test_a_model_that_recovers_is_held_for_and_never_placed_twice():
    async with FakeNeuron(["m"]) as a, FakeNeuron() as b, running(a, b) as gateway:
        a.becomes("m", "recovering")
        await until(lambda: gateway.gateway.nodes.get("node0").models["m"].status != "loaded")
        asked = asyncio.create_task(gateway.ask())
        await until(lambda: gateway.waiting == 1)
        a.becomes("m", "loaded")

        answer = await asked

        assert answer["headers"]["x-cortex-node"] == "node0"
        assert a.counts["load"] + b.counts["load"] == 0


async def test_a_loaded_model_that_cannot_serve_is_never_routed_to():
    async with FakeNeuron(["m"]) as node, running(node, max_wait_s=0.3) as gateway:
        row = node.models["m"]
        sick = attrs.evolve(row.servable, ok=False, reason="its device is gone")
        node.models["m"] = attrs.evolve(row, servable=sick)
        await until(lambda: not gateway.gateway.nodes.get("node0").models["m"].routable)

        await gateway.refused(503, "model_loading")

        assert node.counts["chat"] == 0
        assert (await gateway.get("/health"))["unservable"] == [
            {"node": "node0", "model": "m", "reason": "its device is gone"}
        ]


@pytest.mark.parametrize("status", ["asleep", "unloaded", "failed", "a new word"])
async def test_a_status_that_is_not_loaded_is_not_routable(status):
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        node.becomes("m", status)
        await until(lambda: gateway.gateway.nodes.get("node0").models["m"].status == status)

        await gateway.ask()

        assert node.counts["load"] == 1


async def test_a_gateway_without_nodes_says_so():
    async with running() as gateway:
        error = await gateway.refused(422, "model_not_feasible")

    assert error["message"] == "no node can hold m: none is configured"
