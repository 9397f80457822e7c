"""An idle device that many models came to and went from is re-packed, and never a busy one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from math import inf

import attrs
import pytest

from cortex import testing
from cortex.config.schema import PluginSettings
from cortex.errors import CortexError, DeviceUnavailable, ModelBusy, RouteNotFound
from cortex.fleet.model import ModelSpec
from cortex.fleet.node import Device, Health
from cortex.gateway import defrag, keeper
from cortex.gateway.defrag import Rules, plan
from cortex.gateway.node import Node
from cortex.gateway.nodes import Nodes
from cortex.plugins import Plugins
from cortex.testing import FakeNeuron
from tests.gateway.running import Running, running
from tests.gateway.test_keeper import ticks
from tests.gateway.test_placement import NOW, loaded, node

AFTER = 3
until = partial(testing.until, timeout_s=20.0)  # it takes many steps, on a machine that may be busy
SPECS = {name: ModelSpec(id=name, vram_mb=mb) for name, mb in (("a", 30), ("b", 50), ("c", 10))}
SPECS["pinned"] = ModelSpec(id="pinned", pinned_on=("n",))
SPECS["elsewhere"] = ModelSpec(id="elsewhere", pinned_on=("other",))


# The plan.


def worn(*models, cycles: dict[int, int] | None = None, used_s: float = 100.0, **more) -> Node:
    """Return a node whose device 0 is due, and whose models were used *used_s* ago."""
    used = {model.id: NOW - used_s for model in models}
    made = node("n", *models, last_used=used, **more)
    made.cycles.update(cycles or {0: AFTER})
    return made


def rules(**more) -> Rules:
    settings = {"after_cycles": AFTER, "idle_s": 60.0, "min_residency_s": 20.0, "specs": SPECS}
    return Rules(**{**settings, "now": NOW, "needs_mb": {}, **more})


A, B = loaded("a", 30), loaded("b", 50)


@pytest.mark.parametrize(
    ("made", "more"),
    [
        (worn(A, cycles={0: AFTER - 1}), {}),
        (worn(A, cycles={0: 1_000_000}), {"after_cycles": 0}),
        (worn(A, used_s=59.0), {}),
        (worn(A, age_s=59.0), {}),
        (worn(A), {"min_residency_s": 501.0}),
        (worn(attrs.evolve(A, last_used_s=5.0)), {}),
        (worn(A, B, in_flight={"b": 1}), {}),
        (worn(A, B, busy_elsewhere=("b",)), {}),
        (worn(A, B), {"is_wanted": lambda model: model == "b"}),
        (worn(A), {"at_work": lambda node: node.name == "n"}),
        (worn(A, loaded("b", 50, status="loading")), {}),
        (worn(A, loaded("b", 50, status="recovering")), {}),
        (worn(A, loaded("stranger", 1)), {}),
        (worn(loaded("elsewhere", 1)), {}),
        (worn(A, healthy=False), {}),
        (worn(A, states={0: "recovering"}), {}),
        (worn(A, cycles={7: AFTER}), {}),
    ],
    ids=[
        "too few have gone",
        "it is off",
        "it was used",
        "it is new",
        "it is new for its kind",
        "others used it",
        "it is in use",
        "it is in use by others",
        "somebody waits for it",
        "a load is under way there",
        "a load of others is under way there",
        "it recovers",
        "what is there is not in the catalogue",
        "what is there could not be loaded again",
        "its node is away",
        "its worker starts",
        "there is no such device",
    ],
)
def test_a_device_is_left_alone_while(made, more):
    assert plan([made], rules(**more)) is None


def test_what_is_on_the_device_is_reloaded_the_largest_first_and_nothing_else():
    made = worn(A, B, loaded("c", 10, 1), loaded("x", 5, status="failed"), totals_mb=(100, 100))
    repack = plan([made], rules())
    assert (repack.node, repack.device, repack.touched) == (made, 0, (0,))
    assert [spec.id for spec in repack.specs] == ["b", "a"]
    assert repack.what() == "3 cycles, reload b, a"


def test_what_is_pinned_is_reloaded_too_and_said_so():
    repack = plan([worn(loaded("pinned", 20), A)], rules())
    assert repack.what() == "3 cycles, reload a, pinned (pinned)"
    assert [repack.stays(spec) for spec in repack.specs] == [False, True]


def test_a_model_on_two_devices_touches_both():
    repack = plan([worn(loaded("b", 50, 0, 1), totals_mb=(100, 100))], rules())
    assert (repack.device, repack.touched) == (0, (0, 1))


def test_an_empty_device_is_restarted_and_no_drained_one():
    made = worn()
    assert plan([made], rules()).what() == "3 cycles, reload nothing"
    made.drained = True
    assert plan([made], rules()) is None


def test_the_most_worn_goes_first_of_those_that_can():
    used, idle = worn(A, cycles={0: 9}, used_s=1.0), worn(B, cycles={0: 4, 1: 5}, totals_mb=(9, 9))
    assert (plan([used, idle], rules()).node, plan([used, idle], rules()).device) == (idle, 1)


# The count.


def test_what_goes_from_a_device_is_counted_until_its_worker_is_another():
    nodes, made = Nodes([], Plugins(PluginSettings(only=frozenset()))), node("n")

    def says(*models, uptime_s: float, **states: str) -> dict[int, int]:
        devices = tuple(Device(index=i, state=states.get(f"d{i}", "ok")) for i in range(2))
        health = Health(status="ok", uptime_secs=uptime_s, devices=devices)
        nodes.answered(made, health, models)
        return dict(made.cycles)

    assert says(A, loaded("b", 50, 0, 1), uptime_s=100) == {}
    assert says(A, uptime_s=102) == {0: 1, 1: 1}
    assert says(attrs.evolve(A, devices=(1,)), uptime_s=104) == {0: 2, 1: 1}
    assert says(A, uptime_s=101) == {0: 2, 1: 2}, "a poll that was overtaken is no restart"
    assert says(uptime_s=106, d0="recovering") == {1: 2}
    assert says(A, uptime_s=108) == {1: 2}
    assert says(uptime_s=3) == {}


# The gateway.

MODELS = (
    ModelSpec(id="a", vram_mb=300),
    ModelSpec(id="b", vram_mb=600),
    ModelSpec(id="x", vram_mb=700),
    ModelSpec(id="c", vram_mb=50),
)
SIZES = {spec.id: spec.vram_mb for spec in MODELS}


@pytest.fixture(autouse=True)
def at_once(monkeypatch) -> None:
    monkeypatch.setattr(keeper, "EVERY_S", 0.02)
    monkeypatch.setattr(defrag, "IDLE_S", 0.0)


@asynccontextmanager
async def worn_gateway(
    *others: FakeNeuron, cycles: int = AFTER, models=MODELS, **more
) -> AsyncIterator[tuple[Running, FakeNeuron]]:
    """Run a gateway over a node that has a and b and could hold no more of their size."""
    async with (
        FakeNeuron(["a", "b"], sizes=SIZES, vram_mb=1000) as neuron,
        running(neuron, *others, models=models, defrag_after_cycles=cycles, **more) as gateway,
    ):
        yield gateway, neuron


async def wear(gateway: Running) -> None:
    """Have a model come and go until the device is due; nothing is idle before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defrag, "IDLE_S", inf)
        for _ in range(AFTER):
            await gateway.post("/api/v1/models/c/load", node="node0")
            await gateway.post("/api/v1/models/c/unload", node="node0")


def first(gateway: Running) -> Node:
    return gateway.gateway.nodes.get("node0")


async def is_over(gateway: Running) -> None:
    await until(gateway.gateway._keeper._defrag._task.done)
    assert not first(gateway).closing
    assert not gateway.gateway.loads.views()


async def test_after_so_many_cycles_an_idle_device_is_emptied_restarted_and_filled_again(caplog):
    caplog.set_level(logging.INFO, defrag.__name__)
    async with worn_gateway() as (gateway, neuron):
        await wear(gateway)
        await until(lambda: neuron.counts["restart"] == 1)
        await until(lambda: list(neuron.models) == ["b", "a"])
        await is_over(gateway)
        await ticks(gateway)

        assert (neuron.counts["load"], neuron.counts["unload"]) == (AFTER + 2, AFTER + 2)
        assert neuron.counts["restart"] == 1
        assert not first(gateway).cycles
        assert gateway.counted("cortex_defrags_total", node="node0", device="0") == 1
        assert "defrag node0 device 0: 3 cycles, reload b, a" in caplog.messages
        assert (await gateway.ask("a"))["headers"]["x-cortex-route"] == "loaded"


async def test_a_device_in_use_is_left_alone_until_it_is_idle():
    async with worn_gateway() as (gateway, neuron):
        neuron.ending = "late"
        answering = asyncio.create_task(gateway.stream("a"))
        await until(lambda: neuron.in_flight["a"])
        await wear(gateway)
        await ticks(gateway)
        assert (neuron.counts["unload"], neuron.counts["restart"]) == (AFTER, 0)

        neuron.may_answer.set()
        assert b"[DONE]" in await answering
        await until(lambda: neuron.counts["restart"] == 1)
        await is_over(gateway)


async def test_who_asks_meanwhile_waits_and_is_answered():
    async with worn_gateway() as (gateway, neuron):
        neuron.may_restart.clear()
        await wear(gateway)
        await until(lambda: neuron.counts["restart"] == 1)
        whole = [asyncio.create_task(gateway.ask(model)) for model in "aab"]
        stream = asyncio.create_task(gateway.stream("b"))
        await until(lambda: gateway.waiting == 4)
        assert [job.stage for job in gateway.gateway.loads.views()] == [
            "waiting for its device"
        ] * 2
        assert neuron.counts["load"] == AFTER
        neuron.may_restart.set()

        for answer in await asyncio.gather(*whole):
            assert answer["choices"][0]["message"]["content"] == "one two three"
            assert answer["headers"]["x-cortex-route"] == "joined-load"
        assert b"[DONE]" in await stream
        await is_over(gateway)
        assert neuron.counts["load"] == AFTER + 2
        assert {record.outcome for record in gateway.records} == {"ok"}


async def test_what_is_asked_for_does_not_wait_for_the_loads_before_it():
    async with worn_gateway() as (gateway, neuron):
        neuron.may_restart.clear()
        await wear(gateway)
        await until(lambda: neuron.counts["restart"] == 1)
        neuron.may_load.clear()
        neuron.may_restart.set()
        await until(lambda: neuron.counts["load"] == AFTER + 1)
        assert set(neuron.models) == {"b"}
        asking = asyncio.create_task(gateway.ask("a"))
        await until(lambda: set(neuron.models) == {"a", "b"})
        neuron.may_load.set()
        await asking
        await is_over(gateway)


async def test_another_node_that_has_the_model_answers_meanwhile():
    async with FakeNeuron(["a"], sizes=SIZES) as other, worn_gateway(other) as (gateway, neuron):
        neuron.may_restart.clear()
        await wear(gateway)
        await until(lambda: neuron.counts["restart"] == 1)
        assert (await gateway.ask("a"))["headers"]["x-cortex-node"] == "node1"
        neuron.may_restart.set()
        await until(lambda: set(neuron.models) == {"a", "b"})
        await is_over(gateway)


async def test_what_nobody_asks_for_makes_way_for_what_somebody_does():
    async with worn_gateway() as (gateway, neuron):
        neuron.may_restart.clear()
        await wear(gateway)
        await until(lambda: neuron.counts["restart"] == 1)
        asking = asyncio.create_task(gateway.ask("x"))
        await until(lambda: gateway.waiting == 1)
        await until(lambda: gateway.gateway.loads.view("x").stage == "waiting for room")
        neuron.may_restart.set()

        await asking
        await is_over(gateway)
        assert "b" not in neuron.models
        assert (await gateway.ask("b"))["headers"]["x-cortex-route"] == "cold-load"


async def test_a_pinned_model_comes_back(caplog):
    caplog.set_level(logging.INFO, defrag.__name__)
    models = [attrs.evolve(spec, pinned_on=("node0",) * (spec.id == "b")) for spec in MODELS]
    async with worn_gateway(models=models) as (gateway, neuron):
        await wear(gateway)
        await until(lambda: neuron.counts["restart"] == 1)
        await until(lambda: set(neuron.models) == {"a", "b"})
        await is_over(gateway)
        assert "defrag node0 device 0: 3 cycles, reload b (pinned), a" in caplog.messages


async def test_zero_is_off():
    async with worn_gateway(cycles=0) as (gateway, neuron):
        await wear(gateway)
        await ticks(gateway)
        assert first(gateway).cycles == {0: AFTER}
        assert neuron.counts["restart"] == 0
        assert list(neuron.models) == ["a", "b"]


@pytest.mark.parametrize(
    "error", [DeviceUnavailable("it does not start"), RouteNotFound("no such route")], ids=str
)
async def test_a_restart_that_fails_is_logged_and_not_tried_again_at_once(
    caplog, error: CortexError
):
    async with worn_gateway() as (gateway, neuron):
        neuron.restart_error = error
        await wear(gateway)
        await until(lambda: neuron.counts["restart"] == 1)
        await until(lambda: set(neuron.models) == {"a", "b"})
        await is_over(gateway)
        await ticks(gateway)

        assert neuron.counts["restart"] == 1
        assert f"its worker is not restarted: {error}" in caplog.text
        assert gateway.counted("cortex_defrags_total") == 0
        await gateway.ask("a")


async def test_a_model_that_is_in_use_after_all_stays_and_the_device_is_tried_again(monkeypatch):
    monkeypatch.setattr(defrag, "IDLE_S", inf)
    async with worn_gateway() as (gateway, neuron):
        await wear(gateway)
        neuron.unload_error = ModelBusy("others use it")
        monkeypatch.setattr(defrag, "IDLE_S", 0.0)
        await until(lambda: neuron.counts["unload"] >= AFTER + 2)
        assert (neuron.counts["restart"], neuron.counts["load"]) == (0, AFTER)
        await gateway.ask("a")
        await gateway.ask("b")

        neuron.unload_error = None
        await until(lambda: neuron.counts["restart"] == 1)
        await until(lambda: set(neuron.models) == {"a", "b"})
        await is_over(gateway)


async def test_a_gateway_that_stops_meanwhile_does_not_wait_for_it():
    async with worn_gateway() as (gateway, neuron):
        neuron.may_restart.clear()
        await wear(gateway)
        await until(lambda: neuron.counts["restart"] == 1)
        async with asyncio.timeout(20):
            await gateway.gateway.drain(1.0)
            await until(gateway.gateway._keeper._defrag._task.done)
        assert not first(gateway).closing
