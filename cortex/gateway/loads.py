"""
Loads under way: one job a model, whoever asks joins it.

A job goes on when its waiters leave.  A node that fails is followed by one other; then every waiter
gets the real cause, and for `FORGET_S` so does whoever asks again.  Memory that a job is about to
take counts as taken, and while one makes room on a node nothing else is placed there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from cortex.api import EvictionPolicy
from cortex.config.schema import EvictionSection, GatewayConfig
from cortex.errors import (
    CortexError,
    LoadFailed,
    ModelNotFeasible,
    NoNodeAvailable,
    RemoteError,
    ShuttingDown,
    UpstreamUnreachable,
)
from cortex.fleet.model import ModelSpec
from cortex.fleet.node import LoadJob
from cortex.gateway.catalogue import Names
from cortex.gateway.metrics import GatewayMetrics
from cortex.gateway.node import Node
from cortex.gateway.nodes import Nodes
from cortex.gateway.patience import LONGEST_S, patience, quiet_s
from cortex.gateway.placement import Nowhere, Placement, state_of
from cortex.gateway.planner import WAITING, Job, Planner, drop_claim
from cortex.gateway.poller import poll
from cortex.gateway.queue import Queues

FORGET_S = 10.0
NODES_TO_TRY = 2
UNLOAD_TIMEOUT_S = 60.0
MISFITS = 3  # times a node may say it has less room than it showed
MISFIT_PAUSE_S = 1.0
COMING = Nowhere(
    ever=True, waits=True, why=dict
)  # it comes by itself: hold, never a second placement
log = logging.getLogger(__name__)


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
        queues: Queues[Any],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.on_end: Callable[[str, CortexError | None], None] = lambda _model, _error: None
        self._max_wait_s = config.queue.max_wait_s
        self._queues = queues
        self._nodes = nodes
        self._metrics = metrics
        self._tasks = tasks
        self._planner = Planner(
            config=config.eviction, nodes=nodes, names=names, policy=policy, queues=queues
        )
        self._jobs = self._planner.jobs
        self._failed: dict[str, tuple[float, CortexError]] = {}

    def adopt(self, config: GatewayConfig, policy: EvictionPolicy) -> None:
        """Go by another configuration from now on."""
        self._max_wait_s = config.queue.max_wait_s
        self._planner.adopt(config.eviction, policy)

    @property
    def eviction(self) -> EvictionSection:
        """The configuration in force."""
        return self._planner.config

    def at_work(self, node: Node) -> bool:
        """Tell whether a load is under way on *node*, or could soon be."""
        return self._planner.at_work(node)

    @property
    def needs_mb(self) -> dict[str, int]:
        """Measured memory of models, by id."""
        return self._planner.needs_mb

    def views(self) -> tuple[LoadJob, ...]:
        """Return the loads under way."""
        return tuple(job.view(self._queues.length(name)) for name, job in self._jobs.items())

    def view(self, model: str) -> LoadJob | None:
        """Return the load of *model*, if one is under way."""
        job = self._jobs.get(model)
        return job.view(self._queues.length(model)) if job else None

    def want(self, spec: ModelSpec) -> None:
        """
        Start to load *spec* somewhere, unless that is under way; `on_end` hears of its end.

        Raises:
            CortexError: It failed a moment ago, and why.
        """
        if spec.id not in self._jobs:
            self._start(spec, None, again=False)

    def bring_back(
        self, spec: ModelSpec, claim: Placement, *, held: Callable[[], bool], is_modest: bool
    ) -> Job:
        """
        Start to load *spec* again where it is about to go from; requests wait for that.

        Args:
            spec: It is loaded there, and no load of it is under way.
            claim: Where, and that it goes: nothing else is placed there until the claim is dropped.
            held: See `Job`.
            is_modest: See `Job`.
        """
        job = self._start(spec, claim.node.name, again=True)
        job.claim, job.held, job.is_modest = claim, held, is_modest
        claim.node.closing.update(claim.evict)
        return job

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
        while True:
            job = self._jobs.get(spec.id) or self._start(spec, node, again)
            job.waiting += 1
            try:
                await asyncio.shield(job.done)
            except CortexError:
                if job.wanted_on == node:
                    raise  # otherwise it failed where somebody else wanted it
            else:
                if node in (None, job.wanted_on) or self._is_on(node, spec.id):
                    return
            finally:
                job.waiting -= 1

    def would_place(self, spec: ModelSpec, nodes: Iterable[Node]) -> Placement | Nowhere:
        """Return where of *nodes* a load of *spec* would go now."""
        done = asyncio.get_running_loop().create_future()
        return self._planner.place(Job(spec=spec, done=done, began=self._nodes.clock()), nodes)

    def stop(self) -> None:
        """Let go of the loads under way; the neurons go on with them."""
        for job in self._jobs.values():
            if job.task is not None:
                job.task.cancel()

    def _start(self, spec: ModelSpec, node: str | None, again: bool) -> Job:
        now = self._nodes.clock()
        self._failed = {name: row for name, row in self._failed.items() if now < row[0]}
        if spec.id in self._failed and not again:
            raise self._failed[spec.id][1].with_traceback(None)  # it would hold every request
        done = asyncio.get_running_loop().create_future()
        job = Job(spec=spec, done=done, began=now, wanted_on=node)
        job.done.add_done_callback(lambda done: done.exception())  # it may have no waiter
        self._jobs[spec.id] = job
        job.task = self._tasks.create_task(self._run(job), name=f"load {spec.id}")
        return job

    def _is_on(self, name: str, model: str) -> bool:
        node = self._nodes.get(name)
        return node is not None and state_of(model, [node]) == "loaded"

    async def _run(self, job: Job) -> None:
        try:
            await self._load(job)
        except CortexError as error:
            if isinstance(error, LoadFailed) and job.wanted_on is None:
                self._failed[job.spec.id] = self._nodes.clock() + FORGET_S, error
            self._end(job, error)
        except asyncio.CancelledError:
            self._end(job, ShuttingDown("the gateway is about to stop"))
            raise
        except Exception as error:
            log.exception("load of %s", job.spec.id)
            self._end(job, LoadFailed(f"{type(error).__name__}: {error}"))
        else:
            self._end(job, None)

    def _end(self, job: Job, error: CortexError | None) -> None:
        del self._jobs[job.spec.id]
        concerned = {job.spec.id, *(job.claim.evict if job.claim else ())}
        drop_claim(job)
        self._planner.unsettle(job)
        if error is None:
            job.done.set_result(None)
        else:
            job.done.set_exception(error)
        self.on_end(job.spec.id, None if job.wanted_on else error)
        self._nodes.wake(concerned)

    async def _load(self, job: Job) -> None:
        model = job.spec.id
        while job.held():
            job.stage = "waiting for its device"
            await self._nodes.changed(1.0)
        deadline = self._nodes.clock() + self._max_wait_s
        while (state := state_of(model, self._planner.having(job))) != "loaded":
            found = self._planner.place(job) if state == "absent" else COMING
            if self._planner.gives_way(job, found):
                log.info("%s is not loaded again on %s until asked for", model, job.wanted_on)
                return
            if isinstance(found, Placement):
                await self._try(job, found)
                continue
            if job.tried:
                raise failure(job.tried)
            if not found.ever:
                raise ModelNotFeasible(f"no node can hold {model}: {found}")
            if self._nodes.clock() > deadline or not found.waits:
                raise NoNodeAvailable(f"no node can load {model} now: {found}")
            job.stage = WAITING if state == "absent" else "waiting for its node"
            self._planner.give_turns()
            await self._nodes.changed(1.0)

    async def _try(self, job: Job, placement: Placement) -> None:
        """Load there; what goes wrong is remembered, and raised once that is enough."""
        self._planner.settle(job, placement)
        node = placement.node
        if job.claim is not None and job.claim.node is not node:
            drop_claim(job)
            self._nodes.wake()
        try:
            await self._load_there(job, placement)
        except RoomMissing:
            log.info("%s has too little room for %s", node.name, job.spec.id)
            self._planner.unsettle(job)
            await poll(node, self._nodes)
        except CortexError as error:
            log.warning("load of %s on %s: %s", job.spec.id, node.name, error)
            self._metrics.load_failures(job.spec.id, node.name).inc()
            job.tried[node.name] = error
            self._planner.unsettle(job)
            if len(job.tried) >= NODES_TO_TRY:
                raise failure(job.tried) from None

    async def _load_there(self, job: Job, placement: Placement) -> None:
        node, spec = placement.node, job.spec
        node.closing.update(placement.evict)  # from now on no request goes there
        try:
            for victim in placement.evict:
                self._planner.making_room.add(node.name)
                job.stage = f"evicting {victim}"
                log.info("evict %s from %s for %s", victim, node.name, spec.id)
                await self._evict(node, victim)
        finally:
            node.closing.difference_update(placement.evict)
            self._planner.making_room.discard(node.name)
        job.stage = "loading"
        log.info("load %s on %s", spec.id, node.name)
        need_mb = self._planner.needs_mb.get(spec.id) or spec.vram_mb or 0
        body = {**load_body(spec), "devices": list(placement.devices)}
        began = self._nodes.clock()
        try:
            began = self._nodes.clock()
            async with patience(node, spec.id, quiet_s(need_mb), self._tasks):
                answer = await node.client.post("/models/load", body, LONGEST_S)
            node.load_s[spec.id] = self._nodes.clock() - began
        except RemoteError as error:
            if error.code == "insufficient_vram":
                await self._learn(job, error)
            raise
        if used_mb := answer.get("vram_used_mb"):
            self._planner.needs_mb[spec.id] = int(used_mb)
            self._planner.settle(job, placement)  # by what it took, until its node shows that
        self._metrics.cold_starts(spec.id, node.name).inc()
        self._metrics.load_seconds(spec.id, node.name).observe(self._nodes.clock() - began)
        await poll(node, self._nodes)

    async def _evict(self, node: Node, victim: str) -> None:
        try:
            await self.unload(node, victim, force=False)
        except RemoteError as error:
            log.info("%s stays on %s: %s", victim, node.name, error)
            if error.code != "model_not_found":  # it is in use again: look for another
                await asyncio.sleep(MISFIT_PAUSE_S)
                raise RoomMissing from None
        else:
            self._metrics.evictions(victim, node.name).inc()

    async def _learn(self, job: Job, error: RemoteError) -> None:
        """Take in that a node has too little room after all; raises `RoomMissing` to look again."""
        needed_mb, before_mb = (
            error.details.get("needed_mb"),
            self._planner.needs_mb.get(job.spec.id, 0),
        )
        if isinstance(needed_mb, int) and needed_mb > before_mb:
            self._planner.needs_mb[job.spec.id] = needed_mb
            raise RoomMissing
        job.misfits += 1
        if job.misfits <= MISFITS:
            await asyncio.sleep(MISFIT_PAUSE_S)  # its figures were old
            raise RoomMissing

    async def unload(self, node: Node, model: str, force: bool) -> None:
        """Unload a model from a node."""
        node.unloading(model)
        try:
            await node.client.post(
                "/models/unload", {"model_id": model, "force": force}, UNLOAD_TIMEOUT_S
            )
        finally:
            await poll(node, self._nodes)


def load_body(spec: ModelSpec) -> dict[str, object]:
    """Return what a neuron is told of a model."""
    return {
        "model_id": spec.id,
        "harness": spec.harness,
        "quant": spec.quant,
        "source": spec.source,
        "context": spec.context,
        "vram_mb": spec.vram_mb,
        "tensor_parallel": spec.min_devices,
        "defaults": spec.defaults,
    }


class RoomMissing(Exception):
    """The node has less room for the model than we knew; we know now."""


def failure(tried: dict[str, CortexError]) -> CortexError:
    """Return the error the waiters get for what went wrong on each node."""
    causes = "; ".join(f"{node}: {error}" for node, error in tried.items())
    said = [error for error in tried.values() if not isinstance(error, UpstreamUnreachable)]
    if not said:
        return NoNodeAvailable(causes)
    cause = {"kind": said[-1].code, "message": str(said[-1]), **said[-1].details}
    return LoadFailed(causes, details={"cause": cause})
