"""Four states of a fleet, made of the one in ``fleet``: how each begins, and what happens then."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator

import attrs

from cortex.fleet.node import (
    Device,
    Explanation,
    Fleet,
    FleetNode,
    Health,
    LoadJob,
    ModelHealth,
    NodeModel,
    RequestState,
    Verdict,
)
from tests.cli.top.watching import TellingGateway

QWEN, CODER = "Qwen/Qwen3-8B", "Qwen/Qwen3-Coder-30B-A3B-Instruct"
GEMMA, EMBED = "google/gemma-3-12b-it", "nomic-ai/nomic-embed-text-v1.5"
WHISPER = "openai/whisper-large-v3"
SAMPLES, EVERY_S = 60, 2.0
ZED = RequestState(
    id="req-1",
    state="answering",
    model=QWEN,
    node="beast",
    principal="zed",
    age_s=12.0,
    ttft_s=2.0,
    completion_tokens=400,
)
REQUESTS = (
    ZED,
    RequestState(id="req-2", state="loading", model=CODER, principal="amy", age_s=61.0),
    attrs.evolve(
        ZED,
        id="req-0",
        state="ok",
        status=200,
        age_s=300.0,
        duration_s=4.5,
        ttft_s=0.5,
        completion_tokens=100,
    ),
)


@attrs.frozen(kw_only=True)
class State:
    """
    One of the four.

    Attributes:
        fleet: What the gateway tells first.
        past: Snapshots before that.
        explained: Where it says that `QWEN` goes.
        then: What happens after everything was looked at once.
    """

    fleet: Fleet
    past: tuple[Fleet, ...] = ()
    explained: Explanation
    then: Callable[[TellingGateway], Awaitable[None]]


async def nothing(_: TellingGateway) -> None:
    """Let it be."""


def explained(*nodes: Verdict, how: str = "loaded", node: str = "beast") -> Explanation:
    return Explanation(model=QWEN, how=how, node=node, nodes=nodes)


def healthy(fleet: Fleet) -> State:
    *past, now = _two_minutes(fleet)
    verdicts = (
        Verdict(node="beast", verdict="serves", in_flight=3, pinned=True),
        Verdict(node="benjy", verdict="no", reason="pinned on beast"),
    )
    return State(fleet=now, past=tuple(past), explained=explained(*verdicts), then=nothing)


def loading(fleet: Fleet) -> State:
    job = LoadJob(model=CODER, node="beast", stage="fetching", progress=0.4, eta_s=80.0, waiting=4)
    one = attrs.evolve(fleet, nodes=fleet.nodes[:1], loads=(job,))

    async def read(gateway: TellingGateway) -> None:
        then = attrs.evolve(job, stage="reading", progress=0.5, eta_s=None)
        gateway.tell("load_progress", then)
        model = attrs.evolve(fleet.nodes[0].models[1], stage="reading", progress=0.5, eta_s=None)
        gateway.tell("model", {"node": "beast", "model": model})
        gateway.tell("load_progress", LoadJob(model=GEMMA, node="beast", stage="fetching"))

    return State(fleet=one, explained=explained(Verdict(node="beast", verdict="serves")), then=read)


def degraded(fleet: Fleet) -> State:
    drained = attrs.evolve(fleet.nodes[0], drained=True)
    verdicts = (
        Verdict(node="attic", verdict="no", reason="unreachable"),
        Verdict(node="beast", verdict="no", reason="drained"),
        Verdict(node="benjy", verdict="no", reason="needs 17.6 GiB, 12.4 are free"),
    )

    async def worse(gateway: TellingGateway) -> None:
        told = {"node": "beast", "healthy": False, "drained": True, "error": "silent for 5 s"}
        gateway.tell("node", told)

    return State(
        fleet=attrs.evolve(fleet, nodes=(drained, *fleet.nodes[1:])),
        explained=explained(*verdicts, how="nowhere", node=""),
        then=worse,
    )


def lost(fleet: Fleet) -> State:
    return attrs.evolve(healthy(fleet), then=TellingGateway.stop)


STATES = {"healthy": healthy, "loading": loading, "degraded": degraded, "lost": lost}


def _two_minutes(fleet: Fleet) -> Iterator[Fleet]:
    """Yield what a fleet without trouble said in the last two minutes."""
    for sample in range(SAMPLES):
        wave = 0.5 + 0.5 * math.sin(sample / 3)
        nodes = (_beast(fleet.nodes[0], sample, wave), _benjy(fleet.nodes[1], sample))
        yield attrs.evolve(fleet, nodes=nodes, loads=(), pins={QWEN: ("beast",)})


def _beast(node: FleetNode, sample: int, wave: float) -> FleetNode:
    gpu, other = node.health.devices
    (qwen,) = node.health.models
    gemma = ModelHealth(id=GEMMA, state="loaded", in_flight=1, tok_s=10 + 60 * (1 - wave))
    health = attrs.evolve(
        node.health,
        uptime_secs=node.health.uptime_secs + EVERY_S * sample,
        devices=(gpu, attrs.evolve(other, vram_used_mb=14_480, utilization_pct=34.0)),
        models=(attrs.evolve(qwen, tok_s=90 + 150 * wave), gemma),
    )
    second = tuple(
        NodeModel(id=name, status="loaded", devices=(1,), vram_used_mb=used)
        for name, used in ((GEMMA, 9_800), (WHISPER, 4_100))
    )
    return attrs.evolve(node, health=health, models=(node.models[0], *second), in_flight=4)


def _benjy(node: FleetNode, sample: int) -> FleetNode:
    card = Device(
        index=0,
        name="NVIDIA RTX A4000",
        vram_total_mb=16376,
        vram_used_mb=1_330,
        utilization_pct=2.0,
        temp_c=86.0,
    )
    health = Health(
        status="ok",
        uptime_secs=90_000 + int(EVERY_S) * sample,
        version="0.1.0",
        devices=(card,),
        models=(ModelHealth(id=EMBED, state="loaded"),),
    )
    there = NodeModel(id=EMBED, status="loaded", devices=(0,), vram_used_mb=700)
    return attrs.evolve(node, health=health, models=(there,))
