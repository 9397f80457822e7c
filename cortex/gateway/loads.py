"""
Loads under way: one job a model, whoever asks joins it.

A job goes on when its waiters leave.  A node that fails is followed by one other; then every waiter
gets the real cause, and for `FORGET_S` so does whoever asks again.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic

import attrs

from cortex.api import EvictionPolicy
from cortex.config.schema import GatewayConfig
from cortex.errors import (
    CortexError,
    LoadFailed,
    ModelNotFeasible,
    NoNodeAvailable,
    QueueFull,
    RemoteError,
    UpstreamUnreachable,
)
from cortex.fleet.model import ModelSpec
from cortex.fleet.node import LoadJob
from cortex.gateway.catalogue import Names
from cortex.gateway.metrics import GatewayMetrics
from cortex.gateway.nodes import Node, Nodes
from cortex.gateway.placement import Nowhere, Placement, Rules, place, state_of
from cortex.gateway.poller import poll

FORGET_S = 10.0
NODES_TO_TRY = 2
UNLOAD_TIMEOUT_S = 60.0
LOAD_TIMEOUT_S = 300.0
LOAD_TIMEOUT_S_PER_GIB = 20.0
COMING = Nowhere(ever=True, reasons={})  # it comes by itself: hold, never a second placement
log = logging.getLogger(__name__)


@attrs.define(kw_only=True, eq=False)
class Job:
    """One load; `done` carries its end to all who wait."""

    spec: ModelSpec
    done: asyncio.Future[None]
    wanted_on: str | None = None
    placement: Placement | None = None
    stage: str = "placing"
    waiting: int = 0

    def view(self) -> LoadJob:
        """Return what the admin API shows."""
        node = self.placement.node if self.placement else None
        model = node.models.get(self.spec.id) if node else None
        return LoadJob(
            model=self.spec.id,
            node=node.name if node else None,
            stage=(model.stage if model and self.stage == "loading" else None) or self.stage,
            progress=model.progress if model else None,
            eta_s=model.eta_s if model else None,
            waiting=self.waiting,
            evicting=self.placement.evict if self.placement else (),
        )


class Loads:
    """Starts loads and lets requests wait for them."""

    def __init__(
        self,
        *,
        config: GatewayConfig,
        nodes: Nodes,
        names: Names,
        policy: EvictionPolicy,
        metrics: GatewayMetrics,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._config = config
        self._nodes = nodes
        self._names = names
        self._policy = policy
        self._metrics = metrics
        self._tasks = tasks
        self._jobs: dict[str, Job] = {}
        self._failed: dict[str, tuple[float, CortexError]] = {}
        self._needs_mb: dict[str, int] = {}

    def views(self) -> tuple[LoadJob, ...]:
        """Return the loads under way."""
        return tuple(job.view() for job in self._jobs.values())

    async def ensure(self, spec: ModelSpec, node: str | None = None, again: bool = False) -> None:
        """
        Return once *spec* is loaded somewhere, or on *node*.

        Args:
            spec: What is wanted.
            node: Only there.
            again: Try even if it failed a moment ago.

        Raises:
            CortexError: Why it could not be loaded.
        """
        job = self._jobs.get(spec.id)
        if job is None:
            until, error = self._failed.get(spec.id, (0.0, None))
            if error is not None and monotonic() < until and not again:
                raise error
            job = Job(spec=spec, done=asyncio.get_running_loop().create_future(), wanted_on=node)
            job.done.add_done_callback(lambda done: done.exception())  # it may have no waiter
            self._jobs[spec.id] = job
            self._tasks.create_task(self._run(job), name=f"load {spec.id}")
        if job.waiting >= self._config.queue.max_depth:
            raise QueueFull(f"{job.waiting} requests wait for {spec.id} already")
        job.waiting += 1
        try:
            await asyncio.shield(job.done)
        finally:
            job.waiting -= 1

    async def _run(self, job: Job) -> None:
        try:
            await self._load(job)
        except CortexError as error:
            self._failed[job.spec.id] = monotonic() + FORGET_S, error
            self._end(job, error)
        except asyncio.CancelledError:
            self._end(job, NoNodeAvailable("the gateway stops"))
            raise
        except Exception as error:
            log.exception("load of %s", job.spec.id)
            self._end(job, LoadFailed(f"{type(error).__name__}: {error}"))
        else:
            self._end(job, None)

    def _end(self, job: Job, error: CortexError | None) -> None:
        del self._jobs[job.spec.id]
        if error is None:
            job.done.set_result(None)
        else:
            job.done.set_exception(error)
        self._nodes.wake()

    async def _load(self, job: Job) -> None:
        model, tried = job.spec.id, dict[str, CortexError]()
        deadline = monotonic() + self._config.queue.max_wait_s
        nodes = [node for node in self._nodes if job.wanted_on in (None, node.name)]
        while (state := state_of(model, nodes)) != "loaded":
            found = self._place(job.spec, nodes, tried) if state == "absent" else COMING
            if isinstance(found, Placement):
                await self._try(job, found, tried)
                continue
            if tried:
                raise failure(tried)
            if not found.ever:
                raise ModelNotFeasible(f"no node can hold {model}: {found}")
            if monotonic() > deadline or not any(node.healthy for node in nodes):
                raise NoNodeAvailable(f"no node can load {model} now: {found}")
            job.stage = "waiting for room" if state == "absent" else "waiting for its node"
            await self._nodes.changed(1.0)

    async def _try(self, job: Job, placement: Placement, tried: dict[str, CortexError]) -> None:
        """Load there; what goes wrong is remembered in *tried*, and raised once that is enough."""
        job.placement = placement
        node = placement.node
        try:
            await self._load_there(job, placement)
        except RoomMissing:
            log.info("%s has too little room for %s", node.name, job.spec.id)
        except CortexError as error:
            log.warning("load of %s on %s: %s", job.spec.id, node.name, error)
            tried[node.name] = error
            if len(tried) >= NODES_TO_TRY:
                raise failure(tried) from None

    def _place(
        self, spec: ModelSpec, nodes: list[Node], tried: dict[str, CortexError]
    ) -> Placement | Nowhere:
        rules = Rules(
            policy=self._policy,
            min_residency_s=self._config.eviction.min_residency_s,
            needs_mb=self._needs_mb,
            specs=self._names.specs,
            now=monotonic(),
        )
        return place(spec, nodes, tried, rules)

    async def _load_there(self, job: Job, placement: Placement) -> None:
        node, spec = placement.node, job.spec
        for victim in placement.evict:
            job.stage = f"evicting {victim}"
            log.info("evict %s from %s for %s", victim, node.name, spec.id)
            await self.unload(node, victim, force=False)
            self._metrics.evictions(victim, node.name).inc()
        job.stage = "loading"
        log.info("load %s on %s", spec.id, node.name)
        need_gib = (self._needs_mb.get(spec.id) or spec.vram_mb or 0) / 1024
        body = {
            "model_id": spec.id,
            "harness": spec.harness,
            "quant": spec.quant,
            "source": spec.source,
            "context": spec.context,
            "vram_mb": spec.vram_mb,
            "tensor_parallel": spec.min_devices,
            "devices": list(placement.devices),
            "defaults": spec.defaults,
        }
        timeout_s = LOAD_TIMEOUT_S + LOAD_TIMEOUT_S_PER_GIB * need_gib
        try:
            answer = await node.client.post("/models/load", body, timeout_s)
        except RemoteError as error:
            needed_mb = error.details.get("needed_mb")
            before = self._needs_mb.get(spec.id, 0)
            if (
                error.code == "insufficient_vram"
                and isinstance(needed_mb, int)
                and needed_mb > before
            ):
                self._needs_mb[spec.id] = needed_mb
                raise RoomMissing from None
            raise
        if used_mb := answer.get("vram_used_mb"):
            self._needs_mb[spec.id] = int(used_mb)
        self._metrics.cold_starts(spec.id, node.name).inc()
        await poll(node, self._nodes)

    async def unload(self, node: Node, model: str, force: bool) -> None:
        """Unload a model from a node."""
        try:
            await node.client.post(
                "/models/unload", {"model_id": model, "force": force}, UNLOAD_TIMEOUT_S
            )
        finally:
            await poll(node, self._nodes)


class RoomMissing(Exception):
    """The node needs more room for the model than we knew; we know now."""


def failure(tried: dict[str, CortexError]) -> CortexError:
    """Return the error the waiters get for what went wrong on each node."""
    causes = "; ".join(f"{node}: {error}" for node, error in tried.items())
    last = list(tried.values())[-1]
    if isinstance(last, UpstreamUnreachable):
        return NoNodeAvailable(causes)
    cause = {"kind": last.code, "message": str(last), **last.details}
    return LoadFailed(causes, details={"cause": cause})
