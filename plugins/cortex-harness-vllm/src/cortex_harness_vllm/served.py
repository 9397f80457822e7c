"""
One model on a server of its own: started, watched, replaced when it dies, ended.

Event loop only.  Whatever happens, letting go of the process ends it, in one synchronous stretch.
"""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import socket
from contextlib import suppress
from time import monotonic
from typing import Any

from cortex.api import HarnessHost, Report
from cortex.errors import CortexError, DeviceUnavailable, LoadFailed, UpstreamDied
from cortex.fleet.model import Progress, RunningModel
from cortex_harness_vllm.asking import Asking
from cortex_harness_vllm.causes import IN_USE, cause_of, last_words
from cortex_harness_vllm.engine import HOST, Engine, Job
from cortex_harness_vllm.figures import read_figures
from cortex_harness_vllm.memory import used_bytes
from cortex_harness_vllm.options import ServerOptions
from cortex_harness_vllm.process import Process

PORTS, PORTS_TO_TRY = range(20_000, 32_000), 3
POLL_S = 0.2
WELL_EVERY_S = 5.0
WELL_S = 5.0
RESTARTS, RESTARTS_S = 3, 600.0
log = logging.getLogger(__name__)


class Served:
    """
    A model's server, through all its lives.

    Attributes:
        asking: How to ask it; None while it is not there.
        heard: When it last gave a sign of life, monotonic.
        figures: What its metrics said last; see `with_figures`.
    """

    def __init__(self, engine: Engine, job: Job, options: ServerOptions, host: HarnessHost) -> None:
        self.engine = engine
        self.job = job
        self.asking: Asking | None = None
        self.heard = 0.0
        self.figures: dict[str, float] = {}
        self._options = options
        self._host = host
        self._process: Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._report: Report = lambda _: None
        self._fatal = ""
        self._taken = 0
        self._at = Progress(stage="starting")
        self._what = f"{engine.name} with {job.spec.id}"

    @property
    def body(self) -> str:
        """How the model is run, for people."""
        where = self.asking.url if self.asking else "being started"
        return f"{self.engine.name}: {where}"

    def ask(self) -> Asking:
        """
        Return how to ask it.

        Raises:
            DeviceUnavailable: It is being replaced.
        """
        if self.asking is None:
            raise DeviceUnavailable(f"the server of {self.job.spec.id!r} is being started again")
        return self.asking

    # Its life.

    async def start(self, report: Report) -> RunningModel:
        """
        Start it; returns once it answers.  Cancelling it lets go of the process.

        Raises:
            CortexError: Why it does not, as far as its log says.
        """
        require_program(self.engine, self._options)
        self._report = report
        for tries_left in reversed(range(PORTS_TO_TRY)):
            process = self._process = await self._spawn(port := free_port())
            try:
                async with asyncio.timeout(self._options.start_s):
                    return await self._come_up(process, port)
            except TimeoutError:
                said = last_words(process.tail)
                raise LoadFailed(
                    f"{self._what}: no answer in {self._options.start_s:g} s: {said}"
                ) from None
            except LoadFailed:
                if not tries_left or not any(map(IN_USE.search, process.tail)):
                    raise
            finally:
                if self.asking is None:
                    process.stop()
        raise AssertionError("it is up, or was tried for the last time")

    async def _spawn(self, port: int) -> Process:
        self._fatal, self._taken, self._at = "", 0, Progress(stage="starting")
        self._report(self._at)
        job, engine = self.job, self.engine
        devices = ",".join(map(str, job.devices)) if job.kind == "cuda" else ""
        env = {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": devices,
            **engine.environment,
            **self._options.env_for(job.spec.id),
        }
        command = [*self._options.command, *engine.arguments(job, port), *job.args]
        log.info("%s on port %d", self._what, port)
        process = await Process.start(command, env, stop_s=self._options.stop_s)
        self._host.spawn(process.run(self._take), f"log of {self._what}")
        return process

    async def _come_up(self, process: Process, port: int) -> RunningModel:
        """Wait until it answers, and learn what it is."""
        asking = Asking(f"http://{HOST}:{port}", self.job.spec.id)
        try:
            await self._until_well(process, asking)
            running = await self._learn(process, asking)
        except UpstreamDied:
            await asking.close()
            if await process.ended(WELL_S):
                raise self._cause(process) from None
            raise
        except BaseException:
            await asking.close()
            raise
        self.asking, self.heard = asking, monotonic()
        self._watching = self._watching or self._host.spawn(self._watch(), f"watch {self._what}")
        return running

    async def _until_well(self, process: Process, asking: Asking) -> None:
        while not await asking.is_well(self.engine.health, WELL_S):
            if await process.ended(POLL_S):
                raise self._cause(process)
            if self._fatal:
                await process.end()
                raise LoadFailed(f"{self._what}: {last_words(process.tail)}")

    def _cause(self, process: Process) -> CortexError:
        job = self.job
        had_mb = job.share_mb or job.free_mb
        return cause_of(
            self._what,
            process.tail,
            process.code or 0,
            had_mb=min(had_mb, job.free_mb),
            devices=len(job.devices),
        )

    async def _learn(self, process: Process, asking: Asking) -> RunningModel:
        """Return what it serves."""
        rows = (await asking.get("/v1/models")).get("data") or []
        row: dict[str, Any] = next((r for r in rows if r.get("id") == asking.model), {})
        if not row:
            if await process.ended(WELL_S):
                raise self._cause(process)
            raise LoadFailed(f"{self._what}: another server answers at {asking.url}")
        return RunningModel(
            used_bytes=await self._used(process),
            context=self.engine.context(row) or self.job.spec.context or 0,
            capabilities=await self.engine.capabilities(self.job, asking),
        )

    async def _used(self, process: Process) -> int:
        """Return the memory it takes: as the driver says, else its log, else models.toml."""
        job = self.job
        seen = await asyncio.to_thread(used_bytes, process.pid, job.devices, kind=job.kind)
        return seen or self._taken or (job.spec.vram_mb or 0) << 20 or job.checkpoint.size_bytes

    async def end(self) -> None:
        """End it for good; returns once nothing of it is left."""
        self._report = lambda _: None
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait({self._watching})  # ends at once when cancelled
        await self._let_go()

    async def _let_go(self) -> None:
        asking, self.asking = self.asking, None
        self.figures = {}
        if self._process is not None:
            await self._process.end()
        if asking is not None:
            await asking.close()

    def _take(self, line: str) -> None:
        """Read a line of its log."""
        log.debug("%s: %s", self._what, line)
        if self.asking is not None:
            return
        engine = self.engine
        self._taken += engine.taken(line)
        if engine.fatal is not None and engine.fatal.search(line):
            self._fatal = line
        for stage in engine.stages:
            if found := stage.pattern.search(line):
                self._tell(stage.name, found.groupdict())
                return

    def _tell(self, stage: str, counted: dict[str, str | None]) -> None:
        done, total = int(counted.get("done") or 0), int(counted.get("total") or 0)
        if stage == "reading weights" and total:  # of files that are about as large
            size = self.job.checkpoint.size_bytes
            done, total = size * done // total, size
        now = Progress(stage=stage, done=done, total=total)
        if now != self._at and (total or stage != self._at.stage):
            self._at = now
            self._report(now)

    # Watching it.

    async def _watch(self) -> None:
        """Replace it whenever it dies or falls silent; until that fails, or it is cancelled."""
        model, restarts = self.job.spec.id, list[float]()
        while True:
            why = await self._trouble()
            log.error("%s: %s", self._what, why)
            self._host.model_changed(model, "recovering")
            await self._let_go()
            restarts = [when for when in restarts if monotonic() - when < RESTARTS_S]
            if len(restarts) == RESTARTS:
                self._host.model_changed(model, "failed", f"{why}, {RESTARTS} times before, too")
                return
            restarts.append(monotonic())
            try:
                await self.start(lambda _: None)
            except CortexError as error:
                await self._let_go()
                self._host.model_changed(model, "failed", f"{why}; then {error}")
                return
            self._host.model_changed(model, "loaded")

    async def _trouble(self) -> str:
        """Return why it has to be replaced, once it has to be."""
        assert self._process is not None  # noqa: S101 - it is up
        asking, limit_s = self.ask(), self._options.watchdog_s
        every_s = min(WELL_EVERY_S, limit_s / 4)
        while not await self._process.ended(every_s):
            if await asking.is_well(self.engine.health, min(WELL_S, limit_s)):
                self.heard = monotonic()
                if names := self.engine.figures:
                    self.figures = read_figures(await asking.text("/metrics", WELL_S), names)
            if monotonic() - self.heard > limit_s:
                return f"no sign of life for {limit_s:g} s"
        return str(cause_of("the server died", self._process.tail, self._process.code or 0))


def require_program(engine: Engine, options: ServerOptions) -> None:
    """Raise `LoadFailed` if the server's program is not here."""
    program = next(iter(options.command), "")
    if shutil.which(program) is None:
        raise LoadFailed(
            f"harness {engine.name!r}: there is no program {program!r} here",
            hint=f"install it, or name it in [harness.{engine.name}] command",
        )


def free_port() -> int:
    """
    Return a port of this host that nobody listens on now.

    A server takes it up to a minute later, so it is none that the system gives to connections.
    """
    while True:
        port = random.choice(PORTS)  # noqa: S311 - nobody is to be surprised
        with socket.socket() as listening, suppress(OSError):
            listening.bind((HOST, port))
            return port
