"""
The whole planner, fuzzed: routing, queues, loads and placement as they are, in virtual time.

Nothing is replaced but the neurons and the clock; what should never be asked of a neuron is checked
whenever one is asked, and what must hold of the gateway after each event.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import attrs
import pytest

from cortex.chat.request import RequestHead
from cortex.config.schema import (
    Catalogue,
    EvictionSection,
    GatewayConfig,
    NeuronEntry,
    PluginSettings,
    QueueSection,
    RepliesSection,
)
from cortex.errors import CortexError, LoadFailed, RemoteError
from cortex.fleet.model import ModelSpec
from cortex.gateway import defrag
from cortex.gateway.app import Gateway
from cortex.plugins import Plugins
from cortex.testing import VirtualLoop, VirtualNeuron

pytestmark = pytest.mark.timeout(120)  # it computes all the time
RESIDENCY_S, TURN_S = 20.0, 30.0
LOAD_S, UNLOAD_S, ANSWER_S, LONGEST_S = 10.0, 1.0, 5.0, 20.0
RESTART_S = 10.0


@pytest.fixture(autouse=True)
def polled_often() -> None:
    """Leave polls as often as they are: time costs nothing here."""


def now() -> float:
    return asyncio.get_running_loop().time()


async def pause(seconds: float) -> None:
    await asyncio.sleep(seconds)


@attrs.define(eq=False)
class Fleet:
    """A gateway, its neurons, and what became of the requests."""

    gateway: Gateway
    neurons: dict[str, VirtualNeuron]
    specs: dict[str, ModelSpec]
    loaded_at: dict[tuple[str, str], float] = attrs.field(factory=dict)
    waits: list[float] = attrs.field(factory=list)
    errors: list[CortexError] = attrs.field(factory=list)

    async def ask(self, model: str, answer_s: float = ANSWER_S, principal: str = "") -> None:
        """Ask as a client would, and hold the gateway to its word."""
        head = RequestHead(id="r", model=model, dialect="openai-chat", principal=principal)
        began = now()
        try:
            node, _ = await self.gateway._router.route(head, self.specs[model])
        except CortexError as error:
            self.errors.append(error)
            return
        self.waits.append(now() - began)
        neuron = self.neurons[node.name]
        assert neuron.models[model].status == "loaded"
        neuron.in_flight[model] += 1
        assert not neuron.seats or neuron.in_flight[model] <= neuron.seats
        try:
            await asyncio.sleep(answer_s)
        finally:
            neuron.in_flight[model] -= 1
            self.gateway._router.leave(node, model)
            self.check()

    def check(self) -> None:
        """See that all is well now."""
        for neuron in self.neurons.values():
            assert not neuron.broken
            for device, budget_mb in enumerate(neuron.vram_mb):
                assert neuron.used_mb(device) <= budget_mb
        nodes = self.gateway.nodes
        for need_mb in (1, 40, 80):
            roomy = {node.name for node in nodes.with_room(need_mb)}
            assert roomy == {node.name for node in nodes if node.room_mb() >= need_mb}
        under_way = {load.model for load in self.gateway.loads.views()}
        assert under_way >= {model for node in nodes for model in node.reserved}

    def counts(self) -> tuple[int, int]:
        """Return how many loads and unloads there were."""
        every = self.neurons.values()
        return sum(n.loads.total() for n in every), sum(n.unloads.total() for n in every)

    def loading(self, name: str, load: Callable[[], Awaitable[None]]) -> Callable[..., object]:
        async def wait(model: str) -> None:
            others = (n.models.get(model) for n in self.neurons.values() if n.name != name)
            if any(row is not None and row.status == "loading" for row in others):
                self.neurons[name].broken.append(f"{model} is loaded twice at once")
            await load()
            self.loaded_at[name, model] = now()

        return wait

    def why_not(self, name: str) -> Callable[[str], str | None]:
        def look(model: str) -> str | None:
            if name in self.specs[model].pinned_on and not self.repacks(name):
                return "it is pinned"
            age_s = now() - self.loaded_at[name, model]
            return f"it is {age_s} s old" if age_s < RESIDENCY_S - 1e-6 else None

        return look

    def repacks(self, name: str) -> bool:
        """Tell whether a device of a node is about to be restarted, or was just now."""
        task = self.gateway._keeper._defrag._task
        return task is not None and not task.done() and f"defrag {name} " in task.get_name()


async def plain_load() -> None:
    await asyncio.sleep(LOAD_S)


@asynccontextmanager
async def fleet(
    specs: Sequence[ModelSpec],
    *devices_mb: tuple[int, ...],
    seats: int = 0,
    load: Callable[[], Awaitable[None]] = plain_load,
    defrag_after_cycles: int = 50,
) -> AsyncIterator[Fleet]:
    """Run a gateway over nodes that have these devices."""
    names = [f"node{number}" for number in range(len(devices_mb))]
    config = GatewayConfig(
        neurons=tuple(NeuronEntry(name=name, endpoint="http://h:1") for name in names),
        eviction=EvictionSection(
            min_residency_s=RESIDENCY_S,
            max_turn_s=TURN_S,
            defrag_after_cycles=defrag_after_cycles,
        ),
        queue=QueueSection(max_depth=100_000),
        replies=RepliesSection(max_count=0),
    )
    async with asyncio.TaskGroup() as tasks:
        gateway = Gateway(
            config=config,
            catalogue=Catalogue(models=tuple(specs)),
            plugins=Plugins(PluginSettings(only=frozenset())),
            where="cortex.toml",
            session=None,
            tasks=tasks,
            clock=asyncio.get_running_loop().time,
        )
        made = Fleet(gateway, {}, {spec.id: spec for spec in specs})
        for node, vram_mb in zip(gateway.nodes, devices_mb, strict=True):
            made.neurons[node.name] = node.client = VirtualNeuron(
                name=node.name,
                sizes={spec.id: spec.vram_mb for spec in specs},
                vram_mb=vram_mb,
                seats=seats,
                loading=made.loading(node.name, load),
                unloading=lambda _: pause(UNLOAD_S),
                restarting=lambda _: pause(RESTART_S),
                may_unload=made.why_not(node.name),
            )
        await gateway.start()
        yield made
        gateway.stop()
    made.check()


def virtually(main: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


async def arrive(world: Fleet, dice: random.Random, count: int, every_s: float) -> None:
    """Let *count* requests come, Zipf over the models, some of whose clients leave early."""
    models = list(world.specs)
    weights = [1 / rank for rank in range(1, len(models) + 1)]
    async with asyncio.TaskGroup() as clients:
        for _ in range(count):
            await asyncio.sleep(dice.expovariate(1 / every_s))
            model = dice.choices(models, weights)[0]
            answer_s = min(dice.expovariate(1 / ANSWER_S), LONGEST_S)
            task = clients.create_task(world.ask(model, answer_s, dice.choice("xyz")))
            if dice.random() < 0.1:
                asyncio.get_running_loop().call_later(dice.expovariate(1 / 10), task.cancel)
            world.check()


EIGHT = (
    *(ModelSpec(id=name, vram_mb=mb) for name, mb in zip("abcd", (40, 60, 30, 90), strict=True)),
    ModelSpec(id="wide", vram_mb=120, min_devices=2),
    ModelSpec(id="pinned", vram_mb=50, pinned_on=("node1",)),
    ModelSpec(id="large", vram_mb=100),
    ModelSpec(id="tiny", vram_mb=10, priority=3),
)
THREE = ((100,), (100, 80), (70, 70))


@pytest.mark.promises
@pytest.mark.parametrize(("seed", "every_s"), [(0, 0.5), (1, 0.5), (2, 2.0), (3, 2.0)], ids=str)
def test_of_ten_thousand_arrivals_all_are_served_within_memory_and_in_bounded_time(
    promise, seed, every_s
):
    """Memory, and what an unload must spare, is looked at all along: see `Fleet`."""
    count, bound_s = 2_500, TURN_S + 3 * (RESIDENCY_S + LONGEST_S + UNLOAD_S + LOAD_S)

    async def main() -> None:
        async with fleet(EIGHT, *THREE) as world:
            await arrive(world, random.Random(seed), count, every_s)

        figure = f"of {count} arrivals each {every_s} s {len(world.errors)} failed,"
        figure += f" the longest waited {max(world.waits):.0f} s (bound: {bound_s:.0f})"
        promise(4, f"{figure}; {world.counts()[1]} evictions, none of a busy or pinned model")
        assert not world.errors
        assert max(world.waits) < bound_s
        assert world.counts()[1] > 20  # there was something to decide

    virtually(main)


@pytest.mark.parametrize("seed", range(2))
def test_where_devices_are_re_packed_all_are_served_and_nothing_in_use_goes(seed, monkeypatch):
    monkeypatch.setattr(defrag, "IDLE_S", 3.0)  # or with so few models nothing is ever idle

    async def main() -> None:
        async with fleet(EIGHT, *THREE, defrag_after_cycles=3) as world:
            await arrive(world, random.Random(seed), 500, 4.0)
            while any(map(world.repacks, world.neurons)):
                await asyncio.sleep(1.0)
            assert "pinned" in world.neurons["node1"].models

        assert not world.errors
        restarts = sum(neuron.restarts.total() for neuron in world.neurons.values())
        assert restarts == sum(node.defrags.total() for node in world.gateway.nodes)
        print(f"{restarts} restarts, the longest wait {max(world.waits):.1f} s")
        assert restarts > 5
        repack_s = 4 * UNLOAD_S + RESTART_S
        assert max(world.waits) < TURN_S + repack_s + 3 * (
            RESIDENCY_S + LONGEST_S + UNLOAD_S + LOAD_S
        )

    virtually(main)


@pytest.mark.parametrize("seed", range(2))
def test_where_loads_fail_and_models_have_few_seats_each_request_ends_and_nothing_breaks(seed):
    dice = random.Random(seed)

    async def load() -> None:
        await asyncio.sleep(dice.uniform(1, 30))
        if dice.random() < 0.3:
            raise RemoteError("out of luck", code="load_failed", status=500)

    async def main() -> None:
        async with fleet(EIGHT, *THREE, seats=4, load=load) as world:
            await arrive(world, dice, 2_000, 1.0)

        assert {type(error) for error in world.errors} == {LoadFailed}
        assert len(world.waits) > 1_000

    virtually(main)


@pytest.mark.promises
@pytest.mark.parametrize("gap_s", [0.0, 1.0, 4.0])
def test_abcabc_with_room_for_one_makes_two_swaps(promise, gap_s):
    async def main() -> None:
        async with fleet([ModelSpec(id=name, vram_mb=100) for name in "abc"], (100,)) as world:
            async with asyncio.TaskGroup() as clients:
                for name in "abcabc":
                    clients.create_task(world.ask(name))
                    await asyncio.sleep(gap_s)

        swaps = world.counts()[1]
        promise(5, f"{swaps} swaps for ABCABC, one each {gap_s:g} s (asked: 2)")
        assert world.counts() == (3, 2)
        assert len(world.waits) == 6

    virtually(main)


def test_two_hundred_requests_for_a_cold_model_make_one_load():
    async def main() -> None:
        async with fleet(EIGHT, *THREE) as world, asyncio.TaskGroup() as clients:
            for _ in range(200):
                clients.create_task(world.ask("a"))

        assert world.counts() == (1, 0)
        assert len(world.waits) == 200
        assert max(world.waits) == pytest.approx(LOAD_S)

    virtually(main)


@pytest.mark.parametrize("seed", range(4))
def test_a_large_model_gets_its_turn_however_many_small_ones_come_and_go(seed):
    large = ModelSpec(id="large", vram_mb=100)
    small = [ModelSpec(id=name, vram_mb=50) for name in "abcdefgh"]
    dice, waited = random.Random(seed), []

    async def main() -> None:
        async with fleet([large, *small], (100,)) as world, asyncio.TaskGroup() as clients:

            async def ask_for_the_large_one() -> None:
                began = now()
                await world.ask("large", 0.0)
                waited.append(now() - began)

            for number in range(500):
                await asyncio.sleep(dice.expovariate(1.0))
                clients.create_task(world.ask(dice.choice(small).id))
                if number == 100:
                    clients.create_task(ask_for_the_large_one())

        assert not world.errors
        # each of the small ones may have waited longer, and goes first once
        assert waited[0] < TURN_S + len(small) * (RESIDENCY_S + ANSWER_S + UNLOAD_S + LOAD_S)

    virtually(main)
