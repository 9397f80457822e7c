"""One node as the gateway knows it: what it said last, and what the gateway does with it."""

from __future__ import annotations

import math
import ssl
from collections import Counter
from collections.abc import Iterable
from time import monotonic

import aiohttp
import attrs

from cortex import tls
from cortex.config.schema import NeuronEntry, UpstreamEntry
from cortex.fleet.node import Discovery, FleetNode, Health, ModelHealth, NodeModel
from cortex.gateway.breaker import Breaker
from cortex.gateway.neuron_client import NeuronClient
from cortex.gateway.relay import Exchange

HEAT_HALF_LIFE_S = 600.0
NOT_POLLED = "not polled yet"
LONGEST_REST_S = 60.0
REST_S = 1.0  # where a refusal does not say for how long
HEARTBEAT_S = 10.0  # a neuron sends a keep-alive every 5 s
STALE_S = 10.0  # a poll may be this much older than one that was answered before it


def _note_rows(node: Node, _: object, health: Health | None) -> Health | None:
    node.rows = {row.id: row for row in health.models} if health else {}
    return health


def _note_sight(node: Node, _: object, models: dict[str, NodeModel]) -> dict[str, NodeModel]:
    node.seeing = {m.id for m in models.values() if m.routable and "vision" in m.capabilities}
    return models


@attrs.define(kw_only=True, eq=False)
class Node:
    """
    One neuron, or a server that is not ours.

    Attributes:
        breaker: Holds against it the requests that it took and did not answer.
        resting: Until when it wants no more requests, by model, monotonic seconds.
        ejections: Times it went out of service.
        healthy: It answered its last polls; only then its models are routable.
        gone: It is no part of the fleet any more; what runs there ends by itself.
        drained: An operator wants nothing new to go there; what runs there ends by itself.
        in_flight: Requests of this gateway under way there, by model.
        exchanges: The same, as what carries their answers.
        closing: Models that get no more requests here: they make room once they are idle.
        last_used: When a model was last asked, monotonic seconds.
        loaded_at: When a model was first seen loaded, monotonic seconds.
        rows: What it last said of each model.
        seeing: Models that it has loaded, and that see images.
        heat: Requests for a model, as much as each counted when it was last asked.
        load_s: How long the last load of a model took.
        cycles: Models that went from a device since its worker began, as far as was seen.
        defrags: Times the worker of a device was restarted for that.
        reserved: MiB that loads under way will have taken of each of these devices, by model.
    """

    entry: NeuronEntry | UpstreamEntry
    client: NeuronClient
    healthy: bool = False
    gone: bool = False
    drained: bool = False
    error: str | None = NOT_POLLED
    misses: int = 0
    breaker: Breaker = attrs.field(factory=Breaker)
    resting: dict[str, float] = attrs.field(factory=dict)
    ejections: int = 0
    health: Health | None = attrs.field(default=None, on_setattr=_note_rows)
    rows: dict[str, ModelHealth] = attrs.field(factory=dict)
    discovery: Discovery | None = None
    models: dict[str, NodeModel] = attrs.field(factory=dict, on_setattr=_note_sight)
    seeing: set[str] = attrs.field(factory=set)
    in_flight: Counter[str] = attrs.field(factory=Counter)
    exchanges: set[Exchange] = attrs.field(factory=set)
    closing: set[str] = attrs.field(factory=set)
    last_used: dict[str, float] = attrs.field(factory=dict)
    loaded_at: dict[str, float] = attrs.field(factory=dict)
    heat: dict[str, float] = attrs.field(factory=dict)
    load_s: dict[str, float] = attrs.field(factory=dict)
    cycles: Counter[int] = attrs.field(factory=Counter)
    defrags: Counter[int] = attrs.field(factory=Counter)
    reserved: dict[str, tuple[int, tuple[int, ...]]] = attrs.field(factory=dict)

    @classmethod
    def of(cls, entry: NeuronEntry | UpstreamEntry, session: aiohttp.ClientSession) -> Node:
        client = NeuronClient(entry.endpoint, entry.token, session, tls.toward(entry))
        return cls(entry=entry, client=client)

    def adopt(
        self,
        entry: NeuronEntry | UpstreamEntry,
        session: aiohttp.ClientSession,
        context: ssl.SSLContext | None,
    ) -> None:
        """Go by *entry* from now on, and by *context* for TLS; its endpoint is the same."""
        if entry.token != self.entry.token or tls.files(entry) != tls.files(self.entry):
            self.client.close()
            self.client = NeuronClient(entry.endpoint, entry.token, session, context)
        self.client.tls = context  # its files may have been renewed
        self.entry = entry

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def is_upstream(self) -> bool:
        """Whether it is not ours: it serves what it has, and loads nothing."""
        return isinstance(self.entry, UpstreamEntry)

    @property
    def promised(self) -> tuple[str, ...]:
        """The models that it serves whenever it answers, as its table says."""
        return (self.entry.models or ()) if isinstance(self.entry, UpstreamEntry) else ()

    @property
    def is_new(self) -> bool:
        """Whether it has neither answered a poll yet nor failed to."""
        return self.error == NOT_POLLED

    @property
    def in_service(self) -> bool:
        """Whether anything new may go here."""
        return self.healthy and not self.drained

    def serves(self, model: str) -> bool:
        """Tell whether requests for *model* can go here now."""
        found, now = self.models.get(model), monotonic()
        return (
            self.in_service
            and found is not None
            and found.routable
            and model not in self.closing
            and not self.breaker.is_open(now)
        )

    def has_seat(self, model: str) -> bool:
        """Tell whether *model* takes one more request at once; its queue is here, not there."""
        row = self.rows.get(model)
        limit = row.max_in_flight if row else 0
        is_free = not limit or self.in_flight[model] < limit
        return is_free and (self.breaker.is_closed or not self.in_flight.total())

    def rest(self, model: str, seconds: float) -> None:
        """Ask other nodes for *model* for a while, if there are any: this one refused."""
        self.resting[model] = monotonic() + min(seconds or REST_S, LONGEST_REST_S)

    def rests(self, model: str) -> bool:
        """Tell whether the node wants no more requests for *model* now."""
        return model in self.resting and self.resting[model] > monotonic()

    def unloading(self, model: str) -> None:
        """Note that *model* is about to go; the next poll knows better."""
        if (found := self.models.get(model)) is not None:
            self.models[model] = attrs.evolve(found, status="unloading")

    def count_cycles(self, health: Health, models: Iterable[NodeModel]) -> None:
        """Count what went from each device since the last poll; a new process begins at 0."""
        if self.health is not None and health.uptime_secs < self.health.uptime_secs - STALE_S:
            self.cycles.clear()
            return
        before = {(model.id, device) for model in self.models.values() for device in model.devices}
        there = {(model.id, device) for model in models for device in model.devices}
        self.cycles.update(device for _, device in before - there)
        for device in health.devices:
            if device.state != "ok":  # its worker is about to be another one
                del self.cycles[device.index]

    def queued(self, model: str) -> int:
        """Return how many requests wait on the node itself for *model*, as last polled."""
        row = self.rows.get(model)
        return row.queue_depth if row else 0

    def busy(self, model: str) -> bool:
        """Tell whether anybody uses *model* here, this gateway or not."""
        row = self.rows.get(model)
        return self.in_flight[model] > 0 or bool(row and row.in_flight + row.queue_depth)

    def kv_used_pct(self, model: str) -> float | None:
        """Return how full the cache of *model* is, as last polled, if the node says so."""
        row = self.rows.get(model)
        return row.kv_used_pct if row else None

    def note_use(self, model: str, now: float) -> None:
        """Take note that *model* is asked."""
        self.heat[model] = self.heat_at(model, now) + 1.0
        self.last_used[model] = now

    def idle_again(self, model: str, now: float) -> None:
        """Take note that an answer of *model* is over."""
        self.heat[model] = self.heat_at(model, now)
        self.last_used[model] = now

    def heat_at(self, model: str, now: float) -> float:
        """Return how often *model* was asked lately."""
        idle_s = now - self.last_used.get(model, now)
        return self.heat.get(model, 0.0) * math.exp2(-idle_s / HEAT_HALF_LIFE_S)

    def age_s(self, model: str, now: float) -> float:
        """Return for how long *model* has been loaded here."""
        return now - self.loaded_at.get(model, now)

    @property
    def heard_of(self) -> bool:
        """Whether an answer under way here has lately brought something."""
        return any(
            exchange.status and exchange.silent_s < HEARTBEAT_S for exchange in self.exchanges
        )

    def reserved_mb(self, device: int, besides: str | None = None) -> int:
        """Return what loads under way will yet take of *device*, but for that of one model."""
        return sum(
            max(0, share_mb - self._taken_mb(model, len(devices)))
            for model, (share_mb, devices) in self.reserved.items()
            if device in devices and model != besides
        )

    def _taken_mb(self, model: str, devices: int) -> int:
        """Return what *model* takes of each of its devices already."""
        shown = self.models.get(model)
        return shown.vram_used_mb // devices if shown else 0

    def room_mb(self) -> int:
        """Return what is free, and not reserved, on the device that has most of it."""
        devices = self.health.devices if self.health else ()
        return max((d.vram_free_mb - self.reserved_mb(d.index) for d in devices), default=0)

    def view(self) -> FleetNode:
        """Return what the admin API shows."""
        return FleetNode(
            name=self.name,
            endpoint=self.entry.endpoint,
            healthy=self.healthy,
            drained=self.drained,
            in_flight=self.in_flight.total(),
            error=self.error,
            health=self.health,
            discovery=self.discovery,
            models=tuple(self.models.values()),
        )
