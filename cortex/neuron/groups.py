"""
Device workers that run models together, as the neuron sees them.

One writer, the event loop.  All ranks are told to load the same, in the same order, and find each
other in a folder of their own.  Where a worker of them dies, so do the others, and what ran on them
is loaded again once all are back; a model whose reload ends a worker once more is given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from cortex.errors import (
    CortexError,
    DeviceBusy,
    DeviceUnavailable,
    TensorParallelNotSupported,
)
from cortex.neuron.engine import jobs
from cortex.neuron.engine.place import Place
from cortex.neuron.workers import DeviceWorker, Stage, Watcher

GRACE_S = 60.0  # ranks whose load goes on when another's has failed so long ago are stuck
Spawn = Callable[[Coroutine[Any, Any, None], str], object]


class Groups:
    """The groups there are of some workers."""

    def __init__(self, workers: Mapping[int, DeviceWorker], watcher: Watcher, spawn: Spawn) -> None:
        self._workers, self._watcher, self._spawn = workers, watcher, spawn
        self._found: dict[tuple[int, ...], WorkerGroup] = {}

    def of(self, devices: Sequence[int]) -> WorkerGroup:
        """
        Return the group of some devices.

        Groups that meet on two devices, on one of them in another order, would wait for each other
        for ever, and so would a ring of groups: none may come about.

        Raises:
            TensorParallelNotSupported: One has no worker.
            DeviceBusy: Two of them are in use in others together.
        """
        key = tuple(sorted(devices))
        if missing := [index for index in key if index not in self._workers]:
            raise TensorParallelNotSupported(f"there is no worker of device {missing[0]}")
        islands: list[set[int]] = []  # of devices that wait for each other
        names: set[str] = set()
        for other, group in self._found.items():
            if other != key and group.in_use:
                touched = [island for island in islands if island & {*other}]
                islands = [island for island in islands if island not in touched]
                islands.append({*other}.union(*touched))
                names |= group.in_use
        for island in islands:
            if len(shared := island & {*key}) > 1:
                raise DeviceBusy(
                    f"devices {sorted(shared)} already run {', '.join(sorted(names))} together with"
                    f" others; a model can be split over {sorted(island)} as they are, or over"
                    " others",
                    details={"models": sorted(names)},
                )
        if key not in self._found:
            workers = [self._workers[index] for index in key]
            self._found[key] = WorkerGroup(workers, self._watcher, self._spawn)
        return self._found[key]

    def close(self) -> None:
        """Leave nothing of any group on the disk; their workers are about to end."""
        for group in self._found.values():
            group.part()


class WorkerGroup:
    """
    The workers of some devices, rank 0 first.

    Attributes:
        models: What was loaded on them, by model.
    """

    def __init__(self, workers: Sequence[DeviceWorker], watcher: Watcher, spawn: Spawn) -> None:
        self.workers = tuple(workers)
        self.models: dict[str, jobs.Load] = {}
        self._watcher = watcher
        self._spawn = spawn
        self._turn = asyncio.Lock()  # a load or unload at a time: all ranks have to do the same
        self._folder: TemporaryDirectory[str] | None = None
        self._recovers = False
        self._coming: set[str] = set()

    @property
    def in_use(self) -> set[str]:
        """What was loaded on it, or is about to be."""
        return {*self.models, *self._coming}

    async def load(self, job: jobs.Load, stage: Stage) -> jobs.Loaded:
        """
        Load a model, of which each worker gets a share.

        Raises:
            CortexError: What a worker says, or that it died.
        """
        self._coming.add(job.model)
        try:
            async with self._turn:
                loaded = await self._load(job, stage)
        except Exception:  # not where it was cancelled: its ranks are at it until its unload
            self._coming.discard(job.model)
            raise
        self._coming.discard(job.model)
        return loaded

    async def _load(self, job: jobs.Load, stage: Stage) -> jobs.Loaded:
        for worker in self.workers:
            await worker.started()
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="cortex-group-")
        count = len(self.workers)
        places = [Place(rank=rank, ranks=count, folder=self._folder.name) for rank in range(count)]
        shares = [msgspec.structs.replace(job, place=place) for place in places]
        for worker in self.workers:
            worker.shares[job.model] = self.lost
        try:
            async with asyncio.TaskGroup() as tasks:
                loads = [
                    tasks.create_task(_outcome(worker.load(share, stage if n == 0 else _silent)))
                    for n, (worker, share) in enumerate(zip(self.workers, shares, strict=True))
                ]
                await self._hasten(loads)
            loaded = _all_of([load.result() for load in loads])
        except Exception:
            self._forget(job.model)
            raise
        self.models[job.model] = job
        used_bytes = sum(share.used_bytes for share in loaded)
        return msgspec.structs.replace(loaded[0], used_bytes=used_bytes)

    async def _hasten(self, loads: Sequence[asyncio.Task[jobs.Loaded | CortexError]]) -> None:
        """Wait for loads; once one has failed, end the workers of those that do not come to it."""
        left = set(loads)
        while left:
            done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            if any(isinstance(load.result(), CortexError) for load in done):
                break
        if left:
            _, left = await asyncio.wait(left, timeout=GRACE_S)
        for worker, load in zip(self.workers, loads, strict=True):
            if load in left:
                worker.end("another rank of its group could not load the model")

    async def unload(self, model: str) -> None:
        """Free a model everywhere."""
        async with self._turn:
            for worker in self.workers:  # rank 0 tells the others, which then have it no more
                await worker.unload(model)
            self._forget(model)

    def _forget(self, model: str) -> None:
        self.models.pop(model, None)
        self._coming.discard(model)
        for worker in self.workers:
            worker.shares.pop(model, None)
        if not self.models:
            self.part()

    def part(self) -> None:
        """Remove what the workers met by."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def lost(self) -> None:
        """Take note that one of the workers is gone."""
        if self._recovers or not self.models:
            return
        self._recovers = True
        for model in self.models:
            self._watcher.model_lost(model)
        for worker in self.workers:
            worker.end("another rank of its group is gone")
        self._spawn(self._recover(), "group")

    async def _recover(self) -> None:
        """Load again what there was, on workers that are all new."""
        async with self._turn:
            left, self.models = self.models, {}
            self._coming |= {*left}
            self.part()
            while left:
                job = left.pop(next(iter(left)))
                try:
                    loaded = await self._load(job, _silent)
                except CortexError as error:
                    self._watcher.model_failed(job.model, str(error))
                    if isinstance(error, DeviceUnavailable):  # what is there went with a worker
                        for worker in self.workers:
                            worker.end("another rank of its group is gone")
                        for model in self.models:
                            self._watcher.model_lost(model)
                        left |= self.models
                        self._coming |= {*self.models}
                        self.models.clear()
                        self.part()
                else:
                    self._watcher.model_back(job.model, loaded)
                self._coming.discard(job.model)
            self._recovers = False


async def _outcome(load: Coroutine[Any, Any, jobs.Loaded]) -> jobs.Loaded | CortexError:
    try:
        return await load
    except CortexError as error:
        return error


def _all_of(outcomes: Sequence[jobs.Loaded | CortexError]) -> list[jobs.Loaded]:
    """Return what the ranks have loaded, or raise what kept one from it."""
    if errors := [told for told in outcomes if isinstance(told, CortexError)]:
        raise min(errors, key=_is_echo)
    return [told for told in outcomes if isinstance(told, jobs.Loaded)]


def _is_echo(error: CortexError) -> bool:
    """Tell whether an error is of what another rank's was."""
    return isinstance(error, DeviceUnavailable) or error.message.startswith("rank ")


def _silent(stage: str, done: int, total: int) -> None:
    """Report nothing: rank 0 does."""
