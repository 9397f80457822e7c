"""
The models of this node: one table, written on the event loop only.

A load is single-flight: a second caller joins the one under way, and a caller that leaves does not
stop it; the same goes for an unload, and a load waits until it is over.  Every change of status is
published.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any, Literal

import attrs

from cortex.api import (
    CheckingHarness,
    Count,
    Harness,
    RestartableHarness,
    Source,
    SplittingHarness,
    SpreadingHarness,
)
from cortex.errors import (
    CortexError,
    DeviceUnavailable,
    InsufficientVram,
    LoadFailed,
    ModelBusy,
    ModelNotFound,
    TensorParallelNotSupported,
)
from cortex.fleet.model import Checkpoint, ModelSpec, Progress, RunningModel, Status
from cortex.fleet.node import Device, DeviceState, Limit, NodeModel, Servable
from cortex.neuron import discovery
from cortex.neuron.counters import Counters
from cortex.neuron.fetching import fetch
from cortex.neuron.workers import device_busy
from cortex.sources.hold import Hold, hold

MIB = 1 << 20
log = logging.getLogger(__name__)


@attrs.define(kw_only=True)
class Entry:
    """One model: what was asked for, how far it is, what came of it."""

    spec: ModelSpec
    harness: str
    devices: tuple[int, ...]
    status: Status = "loading"
    progress: Progress = attrs.field(factory=lambda: Progress(stage="waiting"))
    stage_began: float = attrs.field(factory=monotonic)
    error: CortexError | None = None
    running: RunningModel | None = None
    job: asyncio.Task[None] | None = None
    leaving: asyncio.Task[None] | None = None
    held: Hold | None = None
    load_s: float = 0.0
    last_used: float = attrs.field(factory=monotonic)

    def release(self) -> None:
        """Let go of its weights on the disk."""
        if self.held is not None:
            self.held.release()


class Models:
    """The table, and a `cortex.api.HarnessHost`."""

    def __init__(
        self,
        devices: Sequence[Device],
        tasks: asyncio.TaskGroup,
        publish: Callable[[str, object], None],
        source_of: Callable[[ModelSpec], Source],
    ) -> None:
        self.devices = devices
        self.device_states: dict[int, DeviceState] = {}
        self.harnesses: Mapping[str, Harness] = {}
        self._tasks = tasks
        self._background: set[asyncio.Task[None]] = set()
        self._publish = publish
        self._source_of = source_of
        self._entries: dict[str, Entry] = {}
        self._counters = Counters(self.spawn, source_of)

    # What the harnesses ask and tell.

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._tasks.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def stop(self) -> None:
        """End everything spawned; what was loaded goes with its worker."""
        for task in self._background:
            task.cancel()
        for entry in self._entries.values():
            entry.release()

    async def refresh(self) -> None:
        """Read the devices' figures, in a thread: a driver may take its time."""
        try:
            self.devices = await asyncio.to_thread(discovery.read, self.devices)
        except Exception:
            log.exception("the devices do not say how they are")

    def device_changed(self, index: int, state: DeviceState) -> None:
        if self.device_states.get(index, "ok") != state:
            log.warning("device %s: %s", index, state)
            self.device_states[index] = state
            self._publish("device", {"index": index, "state": state})

    def model_changed(
        self,
        model_id: str,
        status: Literal["loaded", "recovering", "failed"],
        error: str | None = None,
    ) -> None:
        if (entry := self._entries.get(model_id)) is not None:
            entry.error = LoadFailed(error) if error else None
            self._set(entry, status)

    # Jobs.

    async def load(
        self, spec: ModelSpec, harness: str, devices: Sequence[int], wait: bool
    ) -> Entry:
        """
        Load a model, or join its load.

        Args:
            spec: What to load.
            harness: Name of one of `harnesses`.
            devices: Indices; none leaves it to those with most free memory.
            wait: Return when it is done, not when it is under way.

        Raises:
            CortexError: Why it cannot be loaded.
        """
        while (entry := self._entries.get(spec.id)) is not None and entry.leaving is not None:
            await asyncio.wait({entry.leaving})
        if entry is None or entry.status == "failed":
            splits = isinstance(self.harnesses[harness], SplittingHarness)
            if spec.min_devices > 1 and not splits:
                raise TensorParallelNotSupported(
                    f"harness {harness!r} runs a model on one device, not {spec.min_devices}"
                )
            there = self._pick(devices, spec.min_devices)
            entry = Entry(spec=spec, harness=harness, devices=there)
            self._entries[spec.id] = entry
            entry.job = self.spawn(self._load(entry), f"load {spec.id}")
            self._set(entry, "loading")
        if wait and entry.job is not None:
            await asyncio.wait({entry.job})
            if entry.error is not None:
                raise entry.error.with_traceback(None)  # it would hold every request
        return entry

    def _pick(self, indices: Sequence[int], count: int = 1) -> tuple[int, ...]:
        """Return the devices to use: those that are asked for, or *count*."""
        known = {device.index: device for device in self.devices}
        for index in indices:
            if index not in known:
                raise DeviceUnavailable(
                    f"there is no device {index}; this node has {sorted(known)}"
                )
        found = sorted(known.values(), key=lambda d: (-d.vram_free_mb, d.index))
        picked = {*indices} or {device.index for device in found[:count]}
        if len(picked) != count:
            among = f"devices are {[*indices]}" if indices else f"this node has {len(known)}"
            raise TensorParallelNotSupported(
                f"a model cannot be split over {count} devices: {among}",
                details={"tensor_parallel": count, "devices": len(picked)},
            )
        return tuple(sorted(picked))

    async def _load(self, entry: Entry) -> None:
        began = monotonic()
        try:
            harness = self.harnesses[entry.harness]
            checkpoint = None
            if harness.needs_weights:
                check = None
                if isinstance(harness, CheckingHarness):
                    check = partial(harness.check, entry.spec)
                report = self._reporter(entry)
                checkpoint = await fetch(self._source_of, entry.spec, report, check=check)
                entry.held = hold(checkpoint.path)
            await self.refresh()
            self._check_room(entry, checkpoint)
            report, devices = self._reporter(entry), entry.devices
            if len(devices) > 1:
                assert isinstance(harness, SplittingHarness)  # noqa: S101 - so it was asked for
                running = await harness.split(entry.spec, checkpoint, devices, report)
            else:
                running = await harness.load(entry.spec, checkpoint, devices[0], report)
            entry.running = running
            await self.refresh()
        except CortexError as error:
            entry.error = error
        except asyncio.CancelledError:
            entry.error = LoadFailed(f"the load of {entry.spec.id!r} was cancelled")
            raise
        except Exception as error:
            log.exception("load of %s", entry.spec.id)
            entry.error = LoadFailed(f"{type(error).__name__}: {error}")
        finally:
            entry.load_s = monotonic() - began
            entry.job = None
            entry.last_used = monotonic()
            if entry.error is not None:
                entry.release()
                log.error("load of %s failed: %s", entry.spec.id, entry.error)
            if entry.leaving is None:
                self._set(entry, "failed" if entry.error else "loaded")

    def _check_room(self, entry: Entry, checkpoint: Checkpoint | None) -> None:
        whole = max(checkpoint.size_bytes // MIB if checkpoint else 0, entry.spec.vram_mb or 0)
        if isinstance(harness := self.harnesses[entry.harness], SpreadingHarness):
            whole = harness.local_bytes(entry.spec, checkpoint) // MIB
        needed = -(-whole // len(entry.devices))
        there = [d for d in self.devices if d.index in entry.devices]
        device = min(there, key=lambda d: d.vram_free_mb)
        if needed > device.vram_free_mb:
            raise InsufficientVram(
                f"{entry.spec.id} needs {needed} MiB, device {device.index} has"
                f" {device.vram_free_mb} MiB free",
                details={"needed_mb": needed, "free_mb": device.vram_free_mb},
            )

    def _reporter(self, entry: Entry) -> Callable[[Progress], None]:
        def report(progress: Progress) -> None:
            if progress.stage != entry.progress.stage:
                entry.stage_began = monotonic()
            entry.progress = progress
            self._publish("load_progress", self._describe(entry))

        return report

    async def unload(self, model_id: str, force: bool) -> None:
        """
        Free a model.

        Raises:
            ModelNotFound: It is not here.
            ModelBusy: It has requests in flight, or is loading, and *force* is not set.
        """
        entry = self.entry(model_id)
        if entry.leaving is None:
            stats = self.harnesses[entry.harness].stats(model_id)
            in_flight = stats.in_flight + stats.queue_depth
            if (in_flight or entry.job) and not force:
                doing = f"has {in_flight} requests in flight" if in_flight else "is loading"
                raise ModelBusy(
                    f"{model_id} {doing}",
                    hint="with force it is unloaded all the same",
                    details={"in_flight": in_flight},
                )
            entry.leaving = self.spawn(self._unload(entry), f"unload {model_id}")
            self._set(entry, "unloading")
        await asyncio.wait({entry.leaving})

    async def _unload(self, entry: Entry) -> None:
        try:
            if entry.job is not None:
                entry.job.cancel()
                await asyncio.wait({entry.job})  # it ends at once
            await self.harnesses[entry.harness].unload(entry.spec.id)
            await self.refresh()
        except Exception:
            log.exception("unload of %s", entry.spec.id)
        finally:
            entry.release()
            del self._entries[entry.spec.id]
            self._set(entry, "unloaded")

    async def restart(self, device: int) -> None:
        """
        Replace the processes of a device without models; returns once they are ready.

        Raises:
            DeviceUnavailable: There is no such device, or a process does not start.
            DeviceBusy: It has models.
        """
        self._pick([device])
        there = [e.spec.id for e in self._entries.values() if device in e.devices]
        if busy := [name for name in there if self._entries[name].status != "failed"]:
            raise device_busy(device, busy)
        for harness in self.harnesses.values():
            if isinstance(harness, RestartableHarness):
                await harness.restart(device)
        await self.refresh()

    async def prepare(self, spec: ModelSpec, harness: str) -> None:
        """
        Make a model countable (`counter`) without loading it.

        Raises:
            CortexError: Why that cannot be.
        """
        if (entry := self._entries.get(spec.id)) is None or entry.status != "loaded":
            await self._counters.prepare(spec, self.harnesses[harness])

    def _set(self, entry: Entry, status: Status) -> None:
        entry.status = status
        log.info("model %s: %s", entry.spec.id, status)
        self._publish("model", self._describe(entry))

    # Looking.

    def entry(self, model_id: str) -> Entry:
        """Return a model of the table, whatever its status."""
        if (entry := self._entries.get(model_id)) is None:
            raise ModelNotFound(f"model {model_id!r} is not on this node")
        return entry

    def serving(self, model_id: str) -> Harness:
        """
        Return the harness that answers for a model, and remember that it was used.

        Raises:
            ModelNotFound: The model is not loaded.
            DeviceUnavailable: It is there and cannot answer now.
        """
        entry = self._entries.get(model_id)
        if entry is None or entry.status not in ("loaded", "recovering", "poisoned"):
            raise ModelNotFound(
                f"model {model_id!r} is not loaded on this node",
                hint="POST /models/load loads it",
                param="model",
            )
        if entry.status != "loaded":
            raise DeviceUnavailable(f"model {model_id!r} is {entry.status}")
        entry.last_used = monotonic()
        return self.harnesses[entry.harness]

    def counter(self, model_id: str) -> Count:
        """
        Return what counts tokens for a model that is loaded, or was prepared.

        Raises:
            ModelNotFound: It is neither.
            DeviceUnavailable: It is there and cannot answer now.
        """
        entry = self._entries.get(model_id)
        count = self._counters.get(model_id)
        if count is not None and (entry is None or entry.status != "loaded"):
            return count
        return self.serving(model_id).count

    def list(self) -> tuple[NodeModel, ...]:
        """Return the table as ``GET /models`` shows it; asks no device."""
        return tuple(self._describe(entry) for entry in self._entries.values())

    def _describe(self, entry: Entry) -> NodeModel:
        running, progress, loading = entry.running, entry.progress, entry.status == "loading"
        done = progress.done / progress.total if progress.total else None
        eta_s = None
        if done and progress.stage == "fetching":
            eta_s = round((monotonic() - entry.stage_began) * (1 - done) / done, 1)
        context = running.context if running else 0
        servable = entry.status == "loaded"
        return NodeModel(
            id=entry.spec.id,
            status=entry.status,
            harness=entry.harness,
            devices=entry.devices,
            vram_used_mb=running.used_bytes // MIB if running else 0,
            capabilities=running.capabilities if running else (),
            limit=Limit(context=context, output=context),
            progress=round(done, 4) if loading and done is not None else None,
            stage=progress.stage if loading else None,
            eta_s=eta_s if loading else None,
            last_used_s=round(monotonic() - entry.last_used, 1),
            servable=Servable(ok=servable, reason=None if servable else entry.status),
            error=str(entry.error) if entry.error else None,
        )
