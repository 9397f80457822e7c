"""
The gateway's planner far past any machine here: many nodes, many models, in virtual time.

Routing, queues, loads and placement are the gateway's own; neurons and clock are not.  Cold loads
stand beside those of caches that hold as much as all nodes together, load at once and split models
over nodes at will: one that forgets what was used longest ago, and one that knows what will be
asked (Belady), which nothing can beat.

    python benchmarks/simulate.py [--full] [--policy lru|priority|cost] [--arrivals N] [--seed N]
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import logging
import os
import platform
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any, cast

import attrs

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), *(str(path) for path in ROOT.glob("plugins/*/src"))]

from cortex.chat.request import RequestHead  # noqa: E402 - found by what stands above
from cortex.config.schema import (  # noqa: E402
    Catalogue,
    EvictionSection,
    GatewayConfig,
    NeuronEntry,
    PluginSettings,
    QueueSection,
    RepliesSection,
)
from cortex.errors import CortexError  # noqa: E402
from cortex.fleet.model import ModelSpec  # noqa: E402
from cortex.gateway.app import Gateway  # noqa: E402
from cortex.gateway.command import collect_seldom  # noqa: E402
from cortex.gateway.poller import first_round  # noqa: E402
from cortex.plugins import Plugins  # noqa: E402
from cortex.testing import VirtualLoop, VirtualNeuron  # noqa: E402

GIB = 1024
DEVICE_GIB = 24
SIZES_GIB = (8, 14, 20)
LOAD_S, LOAD_S_PER_GIB, UNLOAD_S, ANSWER_S = 5.0, 1.0, 1.0, 5.0
PER_NODE_S = 0.05  # requests a second for each node
KEYS = ("batch", *(f"user{number}" for number in range(9)))
SHOW_EVERY = 2_000  # arrivals


@attrs.frozen
class Arrival:
    """A request: after how many seconds, for which model, by whom."""

    at: float
    model: int
    key: str


@attrs.define
class Took:
    """How long each of some decisions took, in microseconds: of this thread, and by the clock."""

    own: list[float] = attrs.field(factory=list)
    clock: list[float] = attrs.field(factory=list)


@attrs.define(repr=False)  # a loop that ends shows its result, for nobody
class Outcome:
    """What came of a run."""

    decisions: dict[str, Took] = attrs.field(factory=lambda: defaultdict(Took))
    waits: dict[str, list[float]] = attrs.field(factory=lambda: defaultdict(list))
    loads: int = 0
    refused: int = 0
    used_mb: int = 0


def zipf(dice: random.Random, models: int, count: int) -> Iterator[int]:
    """Yield models, the second half as often as the first, and so on."""
    weights = [1 / rank for rank in range(1, models + 1)]
    yield from dice.choices(range(models), weights, k=count)


def bursts(dice: random.Random, models: int, count: int) -> Iterator[int]:
    """Yield models of which half are asked, each for a while, then any other in its place."""
    now = [dice.randrange(models) for _ in range(models // 2)]
    for _ in range(count):
        if dice.random() < 0.02:  # noqa: PLR2004 - a run of fifty
            now[dice.randrange(len(now))] = dice.randrange(models)
        yield dice.choice(now)


LOADS: dict[str, Callable[[random.Random, int, int], Iterator[int]]] = {
    "zipf": zipf,
    "bursty": bursts,
}


def arrivals(load: str, nodes: int, models: int, count: int, seed: int) -> list[Arrival]:
    """Return the requests; one key sends half of them."""
    dice, at, found = random.Random(seed), 0.0, []  # noqa: S311 - no secret
    for model in LOADS[load](dice, models, count):
        at += dice.expovariate(nodes * PER_NODE_S)
        key = KEYS[0] if dice.random() < 0.5 else dice.choice(KEYS[1:])  # noqa: PLR2004
        found.append(Arrival(at, model, key))
    return found


def sizes_gib(models: int) -> list[int]:
    """Return how large the models are."""
    return [SIZES_GIB[number % len(SIZES_GIB)] for number in range(models)]


def timed(owner: Any, name: str, into: Took) -> None:
    """Have each call of a method write down how long it took."""
    method = getattr(owner, name)

    def call(*arguments: Any, **more: Any) -> Any:
        began, own = perf_counter(), thread_time()
        try:
            return method(*arguments, **more)
        finally:
            into.own.append((thread_time() - own) * 1e6)
            into.clock.append((perf_counter() - began) * 1e6)

    setattr(owner, name, call)


def finish(asking: Coroutine[None, None, None]) -> None:
    """Run what waits for nothing, without the cost of a task."""
    try:
        asking.send(None)
    except StopIteration:
        return
    raise RuntimeError("it waits")


def gateway_of(nodes: int, models: int, policy: str, tasks: asyncio.TaskGroup) -> Gateway:
    """Return a gateway over neurons that are not there."""
    plugins = Plugins(PluginSettings(only=frozenset()))
    plugins.manager.register(import_module("cortex_eviction_cost"), "eviction-cost")
    sizes = {f"m{number}": gib * GIB for number, gib in enumerate(sizes_gib(models))}
    loop = asyncio.get_running_loop()
    gateway = Gateway(
        config=GatewayConfig(
            neurons=tuple(
                NeuronEntry(name=f"n{number}", endpoint="http://h:1") for number in range(nodes)
            ),
            eviction=EvictionSection(strategy=policy),
            queue=QueueSection(max_depth=1_000_000),
            replies=RepliesSection(max_count=0),
        ),
        catalogue=Catalogue(models=tuple(ModelSpec(id=m, vram_mb=mb) for m, mb in sizes.items())),
        plugins=plugins,
        where="cortex.toml",
        session=cast("Any", None),
        tasks=tasks,
        clock=loop.time,
    )
    for node in gateway.nodes:
        neuron = VirtualNeuron(
            name=node.name,
            sizes=sizes,
            vram_mb=(DEVICE_GIB * GIB,),
            loading=lambda m: asyncio.sleep(LOAD_S + LOAD_S_PER_GIB * sizes[m] / GIB),
            unloading=lambda _: asyncio.sleep(UNLOAD_S),
        )
        node.client = cast("Any", neuron)
    return gateway


async def run(nodes: int, models: int, policy: str, asked: Sequence[Arrival]) -> Outcome:
    """Let all of *asked* come, and return what became of them."""
    outcome, loop = Outcome(), asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        gateway = gateway_of(nodes, models, policy, tasks)
        await first_round(gateway.nodes, gateway.nodes)
        router = gateway._router  # noqa: SLF001 - what is measured
        timed(gateway.loads._planner, "place", outcome.decisions["place"])  # noqa: SLF001
        timed(router, "_choose", outcome.decisions["route"])
        collect_seldom()  # as `cortex serve` does
        tending = tasks.create_task(router.tend_forever())

        async def ask(arrival: Arrival, spec: ModelSpec) -> None:
            head = RequestHead(id="r", model=spec.id, dialect="openai-chat", principal=arrival.key)
            began = loop.time()
            try:
                node, _ = await router.route(head, spec)
            except CortexError:
                outcome.refused += 1
                return
            outcome.waits[arrival.key].append(loop.time() - began)
            loop.call_later(ANSWER_S, router.leave, node, spec.id)

        began = loop.time()
        async with asyncio.TaskGroup() as clients:
            for number, arrival in enumerate(asked):
                if number % SHOW_EVERY == 0 and sys.stderr.isatty():
                    print(f"\r{number} of {len(asked)} ", end="", file=sys.stderr, flush=True)
                await asyncio.sleep(began + arrival.at - loop.time())
                spec = gateway.names.specs[f"m{arrival.model}"]
                served = any(node.serves(spec.id) for node in gateway.nodes.having(spec.id))
                if served and spec.id not in gateway.queues:
                    finish(ask(arrival, spec))
                else:
                    clients.create_task(ask(arrival, spec))
        neurons = [cast("VirtualNeuron", node.client) for node in gateway.nodes]
        outcome.used_mb = sum(neuron.used_mb(0) for neuron in neurons)
        outcome.loads = sum(neuron.loads.total() for neuron in neurons)
        assert not any(neuron.broken for neuron in neurons)  # noqa: S101 - it would mean nothing
        tending.cancel()
    return outcome


def pooled(asked: Sequence[Arrival], capacity_gib: int, sizes: list[int], knows: bool) -> int:
    """
    Return the loads of one cache for all nodes together.

    Args:
        asked: The requests.
        capacity_gib: What it holds.
        sizes: Of the models, GiB.
        knows: It lets go what is asked latest from now on, else what was used longest ago.
    """
    later = [float("inf")] * len(asked)
    seen: dict[int, int] = {}
    for number in reversed(range(len(asked))):
        later[number] = seen.get(asked[number].model, float("inf"))
        seen[asked[number].model] = number
    held: dict[int, float] = {}
    heap: list[tuple[float, int]] = []  # the first to go first; old entries are skipped
    used = loads = 0
    for number, arrival in enumerate(asked):
        model, rank = arrival.model, -later[number] if knows else number
        if model not in held:
            loads += 1
            used += sizes[model]
            while used > capacity_gib:
                was, victim = heapq.heappop(heap)
                if held.get(victim) == was:
                    del held[victim]
                    used -= sizes[victim]
        held[model] = rank
        heapq.heappush(heap, (rank, model))
    return loads


def jain(values: Sequence[float]) -> float:
    """Return Jain's index: 1 if all are the same, 1/n if one has everything."""
    return sum(values) ** 2 / (len(values) * sum(v * v for v in values))


def at(values: Sequence[float], share: float) -> float:
    """Return the quantile of sorted *values*."""
    return values[min(int(len(values) * share), len(values) - 1)]


def row(load: str, nodes: int, models: int, policy: str, asked: Sequence[Arrival]) -> str:
    """Return a line of the table."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        outcome = runner.run(run(nodes, models, policy, asked))
    sizes, whole = sizes_gib(models), nodes * DEVICE_GIB
    took = [outcome.decisions[name] for name in ("place", "route")]
    waits = sorted(wait for waits in outcome.waits.values() for wait in waits)
    mean_s = [sum(waits) / len(waits) + ANSWER_S for waits in outcome.waits.values()]
    cells = [
        load,
        policy,
        *(
            " / ".join(f"{at(sorted(us), share):.0f}" for share in (0.5, 0.99))
            for us in (took[0].own, took[0].clock, took[1].own)
        ),
        *(
            f"{100 * loads / len(asked):.2f}"
            for loads in (
                outcome.loads,
                pooled(asked, outcome.used_mb // GIB, sizes, knows=False),
                pooled(asked, whole, sizes, knows=False),
                pooled(asked, whole, sizes, knows=True),
            )
        ),
        f"{100 * outcome.used_mb / GIB / whole:.0f}",
        f"{at(waits, 0.99):.1f}",
        f"{jain(mean_s):.4f}",
        str(outcome.refused),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--full", action="store_true", help="1,000 nodes, a million arrivals")
    parser.add_argument("--policy", action="append", help="eviction policy; default lru and cost")
    parser.add_argument("--load", action="append", choices=[*LOADS], help="default: both")
    parser.add_argument("--arrivals", type=int, help="requests of each run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable()
    nodes, models, count = (1000, 2000, 1_000_000) if options.full else (50, 100, 20_000)
    count = options.arrivals or count
    cores = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.machine()}"
    print(f"{nodes} nodes of {DEVICE_GIB} GiB, {models} models, {count} arrivals; {cores}\n")
    print(
        "| load | policy | place, us p50 / p99 | by the clock | route, us p50 / p99 "
        "| cold % | lru of as much % | lru % | belady % | full % | wait p99, s | Jain | refused |"
    )
    print("|" + " --- |" * 13, flush=True)
    for load in options.load or LOADS:
        asked = arrivals(load, nodes, models, count, options.seed)
        for policy in options.policy or ("lru", "cost"):
            print(row(load, nodes, models, policy, asked), flush=True)


if __name__ == "__main__":
    main()
