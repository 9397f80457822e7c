"""
Device worker processes as the neuron sees them: spawn, job channel, death, respawn, restart.

One writer, the event loop.  A worker that dies, or misses its heartbeat with a step in flight past
the watchdog, is ended by its own process id and replaced; its requests end with an error, and its
models are loaded again from the jobs that loaded them.  A model whose reload ends the worker once
more is not tried again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import suppress
from time import monotonic
from typing import Any, Protocol

from cortex import errors
from cortex.errors import CortexError, DeviceBusy, DeviceUnavailable
from cortex.fleet.node import DeviceState
from cortex.neuron.engine import frames, jobs
from cortex.neuron.processes import start

PING_S = 5.0
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 5.0
HOPELESS_DEATHS = 3
BACKOFF_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
log = logging.getLogger(__name__)

Stage = Callable[[str, int, int], None]
Said = jobs.Token | jobs.Done | jobs.Embedded | jobs.Lost  # of a request


class Watcher(Protocol):
    """Who is told what happens to a worker."""

    def device_changed(self, index: int, state: DeviceState) -> None: ...
    def model_lost(self, model: str) -> None: ...
    def model_back(self, model: str, loaded: jobs.Loaded) -> None: ...
    def model_failed(self, model: str, error: str) -> None: ...


class DeviceWorker:
    """The process of one device, through all its lives."""

    def __init__(
        self, index: int, kind: str, watcher: Watcher, *, threads: int, watchdog_s: float
    ) -> None:
        self.index = index
        self.pid: int | None = None
        self.tokens_total: Counter[str] = Counter()  # by model, also those nobody waited for
        self.figures: dict[str, jobs.Figures] = {}  # by model, what the engine told last
        self._kind = kind
        self._threads = threads
        self._watchdog_s = watchdog_s
        self._watcher = watcher
        self._ready = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._cause = ""
        self._restarts = False
        self.shares: dict[str, Callable[[], None]] = {}  # by model: who is told of a death
        self._deaths = 0  # in a row, without ever being ready
        self._was_ready = False
        self._process: asyncio.subprocess.Process | None = None
        self._kept: dict[str, jobs.Load] = {}
        self._loads: dict[str, asyncio.Future[jobs.Loaded]] = {}
        self._stages: dict[str, Stage] = {}  # of those
        self._unloads: dict[str, asyncio.Future[None]] = {}
        self._texts: dict[str, asyncio.Future[jobs.TextFiles | None]] = {}
        self._streams: dict[str, asyncio.Queue[Said]] = {}
        self._models: dict[str, str] = {}  # by request, until the engine is done with it
        self._numbers = itertools.count()
        self._pong = 0.0
        self._busy_s = 0.0

    # Jobs.

    async def load(self, job: jobs.Load, stage: Stage) -> jobs.Loaded:
        """
        Load a model.

        Raises:
            CortexError: What the worker says, or that it died.
        """
        await self.started()
        loaded = await self._load(job, stage)
        if job.place is None:  # else its group keeps it
            self._kept[job.model] = job
        return loaded

    async def started(self) -> None:
        """
        Wait until there is a process that takes jobs.

        Raises:
            DeviceUnavailable: None starts.
        """
        deadline = monotonic() + START_TIMEOUT_S
        while not self._ready.is_set():
            if self._deaths >= HOPELESS_DEATHS or monotonic() > deadline:
                raise self._unavailable()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ready.wait(), 0.5)

    async def _load(self, job: jobs.Load, stage: Stage) -> jobs.Loaded:
        future: asyncio.Future[jobs.Loaded] = asyncio.get_running_loop().create_future()
        self._loads[job.model], self._stages[job.model] = future, stage
        try:
            self._send(job)
            return await future  # ends with the worker at the latest
        finally:
            del self._loads[job.model], self._stages[job.model]

    async def read_text(self, path: str) -> jobs.TextFiles:
        """
        Read the text side of a checkpoint, beside whatever the device does.

        Raises:
            CortexError: What the worker says, or that it died.
        """
        text = await self._look(jobs.ReadText(id=f"{next(self._numbers)}", path=path))
        assert text is not None  # noqa: S101 - so it is answered
        return text

    async def check(self, path: str, ranks: int = 1) -> None:
        """
        Ask whether the engine, or *ranks* of it, can run a checkpoint, beside what the device does.

        Raises:
            CortexError: Why it cannot, or that the worker died.
        """
        await self._look(jobs.Check(id=f"{next(self._numbers)}", path=path, ranks=ranks))

    async def _look(self, job: jobs.ReadText | jobs.Check) -> jobs.TextFiles | None:
        await self.started()
        future: asyncio.Future[jobs.TextFiles | None] = asyncio.get_running_loop().create_future()
        self._texts[job.id] = future
        try:
            self._send(job)
            return await future  # ends with the worker at the latest
        finally:
            del self._texts[job.id]

    async def unload(self, model: str) -> None:
        """Free a model; done at once if the worker is not there."""
        self._kept.pop(model, None)
        if not self._ready.is_set():
            return
        future = self._unloads[model] = asyncio.get_running_loop().create_future()
        try:
            self._send(jobs.Unload(model=model))
            await future  # ends with the worker at the latest
        finally:
            del self._unloads[model]
            self.figures.pop(model, None)

    async def restart(self) -> None:
        """
        Put a new process in place of this one, and return once it is ready.

        Raises:
            DeviceBusy: It has models.
            DeviceUnavailable: The new one does not start.
        """
        if models := {*self._kept, *self.shares, *self._loads}:
            raise device_busy(self.index, models)
        if self._ready.is_set() and (writer := self._writer) is not None:
            self._restarts = True
            self._ready.clear()  # what comes now waits for the new one
            self._watcher.device_changed(self.index, "recovering")
            if self._texts:
                await asyncio.wait(self._texts.values())  # they end with the worker at the latest
            writer.close()  # the worker leaves with its channel
        await self.started()

    def end(self, cause: str) -> None:
        """End the process, if there is one; another takes its place."""
        if self._process is None or not self._ready.is_set():
            return  # it is on its way out, or in
        self._cause = cause
        self._ready.clear()  # what comes now waits for the new one
        self._watcher.device_changed(self.index, "recovering")
        with suppress(ProcessLookupError):
            self._process.kill()

    async def ask(self, job: jobs.Generate | jobs.Embed) -> AsyncGenerator[Said, None]:
        """
        Yield what comes of a request: tokens and a `Done`, or an `Embedded`, or a `Lost`.

        Closing it cancels the request.
        """
        stream: asyncio.Queue[Said] = asyncio.Queue()
        self._streams[job.id] = stream
        ended = False
        try:
            self._send(job)
            self._models[job.id] = job.model
            while not ended:
                event = await stream.get()  # the watchdog ends a worker that says nothing
                ended = not isinstance(event, jobs.Token)
                yield event
        finally:
            del self._streams[job.id]
            if not ended and self._ready.is_set():
                self._send(jobs.Cancel(id=job.id))

    def _send(self, job: jobs.Job) -> None:
        if self._writer is None or self._writer.is_closing():
            raise self._unavailable()
        self._writer.write(frames.framed(jobs.encode(job)))

    def _unavailable(self) -> DeviceUnavailable:
        cause = f": {self._cause}" if self._cause else ""
        return DeviceUnavailable(f"the worker of device {self.index} is not running{cause}")

    # Life and death.

    async def supervise(self) -> None:
        """Keep a worker running until cancelled."""
        while True:
            await asyncio.sleep(BACKOFF_S[min(self._deaths, len(BACKOFF_S) - 1)])
            try:
                if await self._live():
                    self._deaths = 0
            except OSError as error:
                self._cause = str(error)
            if self._restarts:
                log.info("device %s: worker restarts", self.index)
                self._restarts, self._deaths = False, 0
            else:
                self._deaths += 1
                log.error("device %s: worker ended: %s", self.index, self._cause)
            self._watcher.device_changed(self.index, "recovering")

    async def _live(self) -> bool:
        """Run one worker to its end; return whether it ever was ready."""
        self._cause = "it ended"
        ours, theirs = socket.socketpair()
        try:
            process = await start(self.index, self._kind, self._threads, theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.pid, self._process, self._was_ready = process.pid, process, False
        reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read(reader))
                watching = tasks.create_task(self._watch(process))
                recovering = tasks.create_task(self._recover())
                await reading
                watching.cancel()
                self._ready.clear()
                self._writer.close()
                await self._end(process)  # now we know how it ended
                self._lose_everything()
                if not self._was_ready:
                    recovering.cancel()
        finally:
            self._ready.clear()
            self._writer.close()
            await self._end(process)
        return self._was_ready

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """End the process by its own id."""
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                code = await process.wait()
        except (TimeoutError, asyncio.CancelledError):
            with suppress(ProcessLookupError):
                process.kill()
            code = await process.wait()  # a killed process is gone at once
        if code < 0 and self._cause == "it ended":
            self._cause = f"it was ended by signal {-code}"
        self.pid = self._process = None

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (length,) = frames.LENGTH.unpack(await reader.readexactly(frames.LENGTH.size))
                self._handle(jobs.decode_event(await reader.readexactly(length)))

    def _handle(self, event: jobs.Event) -> None:  # noqa: C901, PLR0912 - a table
        match event:
            case jobs.Tokens(tokens=tokens):
                for token in tokens:
                    self.tokens_total[self._models[token.request]] += 1
                    self._tell(token.request, token)
            case jobs.Done() | jobs.Embedded() | jobs.Lost():
                self._models.pop(event.id, None)
                self._tell(event.id, event)
            case jobs.Figures(model=model):
                self.figures[model] = event
            case jobs.Pong(busy_s=busy_s):
                self._pong, self._busy_s = monotonic(), busy_s
            case jobs.LoadProgress(model=model) if model in self._stages:
                self._stages[model](event.stage, event.done, event.total)
            case jobs.Loaded(model=model) if waits(self._loads, model):
                self._loads[model].set_result(event)
            case jobs.LoadFailed(model=model) if waits(self._loads, model):
                self._loads[model].set_exception(error_of(event))
            case jobs.TextRead(id=number) if waits(self._texts, number):
                self._texts[number].set_result(event.text)
            case jobs.Checked(id=number) if waits(self._texts, number):
                self._texts[number].set_result(None)
            case jobs.TextFailed(id=number) if waits(self._texts, number):
                self._texts[number].set_exception(error_of(event))
            case jobs.Unloaded(model=model) if waits(self._unloads, model):
                self._unloads[model].set_result(None)
            case jobs.Ready():
                log.info("device %s: torch %s on %s", self.index, event.torch, event.device)
                self._pong = monotonic()
                self._was_ready = True
                self._ready.set()
            case jobs.Poisoned(message=message):
                self._cause = message
                self._watcher.device_changed(self.index, "poisoned")

    def _tell(self, request_id: str, event: Said) -> None:
        if (stream := self._streams.get(request_id)) is not None:
            stream.put_nowait(event)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """End a worker that does not answer, or whose step does not end."""
        self._pong, self._busy_s = monotonic(), 0.0
        while self._writer and not self._writer.is_closing():
            self._send(jobs.Ping())
            await asyncio.sleep(PING_S)
            silent_s = monotonic() - self._pong
            limit_s = self._watchdog_s if self._ready.is_set() else START_TIMEOUT_S
            if max(silent_s - PING_S, self._busy_s) > limit_s:
                self._cause = f"no sign of life for {max(silent_s, self._busy_s):.0f} s"
                process.kill()
                return

    async def _recover(self) -> None:
        """Load again what the last worker had, then call the device well."""
        await self._ready.wait()
        for model, job in list(self._kept.items()):
            if self._kept.get(model) is not job:
                continue  # it was unloaded since
            del self._kept[model]  # if this load ends the worker, the next life goes without
            try:
                loaded = await self._load(job, lambda *_: None)
            except CortexError as error:
                self._watcher.model_failed(model, str(error))
                if isinstance(error, DeviceUnavailable):
                    return
            else:
                if model not in self._unloads:
                    self._kept[model] = job
                    self._watcher.model_back(model, loaded)
        self._watcher.device_changed(self.index, "ok")

    def _lose_everything(self) -> None:
        """Tell every waiter that the worker is gone; what was loaded is kept for the next one."""
        told: list[asyncio.Future[Any]] = [*self._loads.values(), *self._texts.values()]
        for future in told:
            if not future.done():
                future.set_exception(self._unavailable())
        for done in self._unloads.values():
            if not done.done():
                done.set_result(None)
        self._models.clear()
        self.figures.clear()
        message = f"the device worker died: {self._cause}"
        for request_id, stream in self._streams.items():
            stream.put_nowait(jobs.Lost(id=request_id, message=message))
        for model in self._kept:
            self._watcher.model_lost(model)
        for tell in [*self.shares.values()]:
            tell()


def waits(futures: Mapping[str, asyncio.Future[Any]], key: str) -> bool:
    """Tell whether anybody waits for this one: who did may have been cancelled."""
    return key in futures and not futures[key].done()


def device_busy(index: int, models: Iterable[str]) -> DeviceBusy:
    """Return the error for a restart of a device that has models on it."""
    names = sorted(models)
    return DeviceBusy(f"device {index} has {', '.join(names)}", details={"models": names})


def error_of(event: jobs.LoadFailed | jobs.TextFailed | jobs.Lost) -> CortexError:
    """Return the error a worker reported, as the class its code names."""
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    kinds = {kind.code: kind for kind in classes if issubclass(kind, CortexError)}
    return kinds.get(event.code, errors.LoadFailed)(
        event.message, details=getattr(event, "details", None)
    )
