"""
A gateway's fleet without sockets, in a time that passes only while nobody has anything to do.

`VirtualLoop` never sleeps: when all tasks wait, its clock jumps to the next timer, so that hours
pass in seconds and each run of a seed is the same.  `VirtualNeuron` stands in for the client of a
neuron; what a gateway must never do to a neuron is kept in `broken`.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs

from cortex.errors import RemoteError
from cortex.fleet.node import Device, DeviceInfo, Discovery, Health, ModelHealth, NodeModel


class Clock(selectors.SelectSelector):
    """Where a loop would sleep: the time passes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        """Let *timeout* pass."""
        if timeout is None:
            raise RuntimeError("everybody waits for ever")
        self.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop for tasks that wait for timers and for each other only."""

    def __init__(self) -> None:
        self._virtual = Clock()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Return virtual seconds."""
        return self._virtual.now


async def at_once(_: object) -> None:
    """Take no time."""


@attrs.define(kw_only=True, eq=False)
class VirtualNeuron:
    """
    A neuron, in place of a `NeuronClient`.

    Attributes:
        sizes: Memory of models on all their devices together, MiB.
        vram_mb: Memory of each device.
        loading: Waits as long as a load takes; what it raises is the neuron's answer.
        unloading: The same of an unload.
        restarting: The same of the restart of a device.
        may_unload: Tells what is wrong with unloading a model, if anything is.
        seats: Requests a model takes at once.
        in_flight: Requests under way; whoever plays clients counts them.
        loads: Loads begun, by model.
        unloads: Unloads done, by model.
        restarts: Restarts done, by device.
        recovering: Devices that restart.
        broken: What should never have been asked of it.
    """

    name: str
    sizes: Mapping[str, int]
    vram_mb: tuple[int, ...]
    loading: Callable[[str], Awaitable[None]] = at_once
    unloading: Callable[[str], Awaitable[None]] = at_once
    restarting: Callable[[int], Awaitable[None]] = at_once
    may_unload: Callable[[str], str | None] = lambda _: None
    seats: int = 0
    models: dict[str, NodeModel] = attrs.field(factory=dict)
    in_flight: Counter[str] = attrs.field(factory=Counter)
    loads: Counter[str] = attrs.field(factory=Counter)
    unloads: Counter[str] = attrs.field(factory=Counter)
    restarts: Counter[int] = attrs.field(factory=Counter)
    recovering: set[int] = attrs.field(factory=set)
    broken: list[str] = attrs.field(factory=list)

    async def get(self, path: str, _: object) -> object:
        """Answer a poll."""
        match path:
            case "/health":
                return Health(status="ok", devices=self._devices(), models=self._rows())
            case "/models":
                return tuple(self.models.values())
            case _:
                infos = tuple(DeviceInfo(index=i, vram_total_mb=m) for i, m in self._totals())
                return Discovery(hostname=self.name, devices=infos, dialects=("openai-chat",))

    async def post(self, path: str, body: Mapping[str, Any], _: float) -> Mapping[str, Any]:
        """Load, unload, or restart a device."""
        if path.startswith("/devices/"):
            return await self._restart(int(path.split("/")[2]))
        model = body["model_id"]
        if path == "/models/unload":
            return await self._unload(model)
        return await self._load(model, tuple(body["devices"]))

    def close(self) -> None:
        """Nothing is open."""

    def used_mb(self, device: int) -> int:
        """Return what the models on *device* take of it, those that are being loaded included."""
        return sum(self._share(row) for row in self.models.values() if device in row.devices)

    def _totals(self) -> list[tuple[int, int]]:
        return list(enumerate(self.vram_mb))

    def _share(self, row: NodeModel) -> int:
        return -(-self.sizes[row.id] // len(row.devices))

    def _devices(self) -> tuple[Device, ...]:
        shown = [(index, mb, self._shown_mb(index)) for index, mb in self._totals()]
        return tuple(
            Device(
                index=index,
                vram_total_mb=mb,
                vram_used_mb=used,
                vram_free_mb=mb - used,
                state="recovering" if index in self.recovering else "ok",
            )
            for index, mb, used in shown
        )

    def _shown_mb(self, device: int) -> int:
        rows = [row for row in self.models.values() if device in row.devices]
        return sum(self._share(row) for row in rows if row.vram_used_mb)

    def _rows(self) -> tuple[ModelHealth, ...]:
        return tuple(
            ModelHealth(
                id=row.id,
                state=row.status,
                in_flight=self.in_flight[row.id],
                max_in_flight=self.seats,
            )
            for row in self.models.values()
        )

    async def _load(self, model: str, devices: tuple[int, ...]) -> Mapping[str, Any]:
        if model in self.models:
            self.broken.append(f"{model} is loaded twice on {self.name}")
        self.loads[model] += 1
        self.models[model] = NodeModel(id=model, status="loading", devices=devices)
        for device in devices:
            if self.used_mb(device) > self.vram_mb[device]:
                self.broken.append(f"{model} is too much for {self.name}, device {device}")
        try:
            await self.loading(model)
        except BaseException:
            del self.models[model]
            raise
        used_mb = self.sizes[model]
        self.models[model] = NodeModel(
            id=model, status="loaded", devices=devices, vram_used_mb=used_mb
        )
        return {"vram_used_mb": used_mb}

    async def _restart(self, device: int) -> Mapping[str, Any]:
        if there := [row.id for row in self.models.values() if device in row.devices]:
            self.broken.append(f"device {device} of {self.name} is restarted with {there}")
        self.recovering.add(device)
        await self.restarting(device)
        self.recovering.discard(device)
        self.restarts[device] += 1
        return {"status": "restarted"}

    async def _unload(self, model: str) -> Mapping[str, Any]:
        if model not in self.models:
            raise RemoteError(f"{model} is not loaded", code="model_not_found", status=404)
        if self.in_flight[model]:
            self.broken.append(f"{model} is unloaded from {self.name} while it answers")
        if (why := self.may_unload(model)) is not None:
            self.broken.append(f"{model} is unloaded from {self.name}: {why}")
        row = self.models[model]
        self.models[model] = attrs.evolve(row, status="unloading")
        await self.unloading(model)
        del self.models[model]
        self.unloads[model] += 1
        return {"status": "unloaded"}
