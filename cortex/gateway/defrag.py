"""
Gives a device that many models came to and went from its memory back in one piece.

What the models leave behind lies scattered over the device, until its worker is another process.
`plan` says which device is due, as a pure function; `Defrag` has it done, one device of the fleet
at a time: what is there goes, the neuron restarts the worker, what was there comes back as loads
like any other, the largest first.  Whoever asks for it meanwhile waits for that load.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import attrs

from cortex.errors import CortexError, RemoteError
from cortex.fleet.model import ModelSpec
from cortex.fleet.node import NodeModel
from cortex.gateway.catalogue import Names
from cortex.gateway.loads import Loads
from cortex.gateway.node import Node
from cortex.gateway.nodes import Nodes
from cortex.gateway.placement import Placement, feasible_on
from cortex.gateway.planner import Job, drop_claim
from cortex.gateway.poller import poll
from cortex.gateway.queue import Queues

IDLE_S = 60.0  # a minute without requests: nobody is in the middle of a conversation
RESTART_TIMEOUT_S = 200.0  # a neuron gives a new worker 180 s
log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Repack:
    """
    A device, and what is unloaded from it and loaded again, in this order.

    Attributes:
        touched: Every device these models are on.
    """

    node: Node
    device: int
    cycles: int
    specs: tuple[ModelSpec, ...]
    touched: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.node.name} device {self.device}"

    def stays(self, spec: ModelSpec) -> bool:
        """Tell whether *spec* belongs there, asked for or not."""
        return spec.preload or self.node.name in spec.pinned_on

    def what(self) -> str:
        """Return what is to be done and why, for the log."""
        names = (f"{s.id} (pinned)" if self.stays(s) else s.id for s in self.specs)
        return f"{self.cycles} cycles, reload {', '.join(names) or 'nothing'}"


@attrs.frozen(kw_only=True)
class Rules:
    """
    What is due, and what speaks against it.

    Attributes:
        after_cycles: Models gone from a device since its worker began; 0 is never.
        idle_s: For how long nobody must have used what is there.
        min_residency_s: For how long it must have been there.
        now: Monotonic seconds.
        specs: The catalogue, by id; what is not in it cannot be loaded again as it is.
        needs_mb: Measured memory of models, by id.
        is_wanted: Tells whether requests wait for a model, or a load of it is under way.
        at_work: Tells whether a load is under way on a node, or could soon be.
    """

    after_cycles: int
    idle_s: float
    min_residency_s: float
    now: float
    specs: Mapping[str, ModelSpec]
    needs_mb: Mapping[str, int]
    is_wanted: Callable[[str], bool] = lambda _: False
    at_work: Callable[[Node], bool] = lambda _: False


def plan(nodes: Iterable[Node], rules: Rules) -> Repack | None:
    """Return what to re-pack now: of the devices that are due and idle, the most worn."""
    if rules.after_cycles <= 0:
        return None
    due = [
        (-cycles, node.name, device, node)
        for node in nodes
        for device, cycles in node.cycles.items()
        if cycles >= rules.after_cycles
    ]
    for _, _, device, node in sorted(due, key=lambda row: row[:3]):
        if not is_usable(node, device) or rules.at_work(node):
            continue
        there = [m for m in node.models.values() if device in m.devices and m.status != "failed"]
        if all(may_leave(node, model, rules) for model in there):
            there.sort(key=lambda model: (-model.vram_used_mb, model.id))
            return Repack(
                node=node,
                device=device,
                cycles=node.cycles[device],
                specs=tuple(rules.specs[model.id] for model in there),
                touched=tuple(sorted({device, *(d for model in there for d in model.devices)})),
            )
    return None


def is_usable(node: Node, device: int) -> bool:
    """Tell whether models could be loaded on a device now."""
    devices = node.health.devices if node.health else ()
    return node.in_service and any(d.index == device and d.state == "ok" for d in devices)


def may_leave(node: Node, model: NodeModel, rules: Rules) -> bool:
    """Tell whether nobody misses a model for a while, and it can be loaded again as it is."""
    spec = rules.specs.get(model.id)
    if spec is None or feasible_on(spec, node, rules.needs_mb) is not None:
        return False
    if not model.routable or model.id in node.closing:
        return False
    if rules.is_wanted(model.id) or node.busy(model.id):
        return False
    age_s = node.age_s(model.id, rules.now)
    used_s = rules.now - node.last_used.get(model.id, rules.now)
    elsewhere_s = used_s if model.last_used_s is None else model.last_used_s  # by others, too
    return age_s >= rules.min_residency_s and min(age_s, used_s, elsewhere_s) >= rules.idle_s


class Defrag:
    """Has done what is planned; its clock is that of *nodes*."""

    def __init__(
        self,
        *,
        nodes: Nodes,
        names: Names,
        loads: Loads,
        queues: Queues[Any],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._nodes = nodes
        self._names = names
        self._loads = loads
        self._queues = queues
        self._tasks = tasks
        self._task: asyncio.Task[None] | None = None
        self._turn = -1  # how many loads may go on after the first; below 0 none may

    def tick(self) -> None:
        """Begin with what is due, unless something is under way."""
        if self._task is not None and not self._task.done():
            return
        if (repack := plan(self._nodes, self._rules())) is not None:
            log.info("defrag %s: %s", repack, repack.what())
            work = self._run(repack, self._close(repack))
            self._task = self._tasks.create_task(work, name=f"defrag {repack}")

    def stop(self) -> None:
        """Leave things as they are."""
        if self._task is not None:
            self._task.cancel()

    def _rules(self) -> Rules:
        config = self._loads.eviction
        return Rules(
            after_cycles=config.defrag_after_cycles,
            idle_s=IDLE_S,
            min_residency_s=config.min_residency_s,
            now=self._nodes.clock(),
            specs=self._names.specs,
            needs_mb=self._loads.needs_mb,
            is_wanted=lambda m: m in self._queues or self._loads.view(m) is not None,
            at_work=self._loads.at_work,
        )

    def _close(self, repack: Repack) -> list[Job]:
        """Let no request go there any more; return the loads that they wait for instead."""
        self._turn = -1
        return [
            self._loads.bring_back(
                spec,
                Placement(node=repack.node, devices=repack.touched, evict=(spec.id,)),
                held=partial(self._is_held, number, spec.id),
                is_modest=not repack.stays(spec),
            )
            for number, spec in enumerate(repack.specs)
        ]

    def _is_held(self, number: int, model: str) -> bool:
        is_asked_for = self._turn >= 0 and model in self._queues
        return number > self._turn and not is_asked_for

    async def _run(self, repack: Repack, jobs: list[Job]) -> None:
        began = self._nodes.clock()
        try:
            await self._renew(repack)
        except CortexError as error:
            log.warning("defrag %s: its worker is not restarted: %s", repack, error)
        except Exception:
            log.exception("defrag %s", repack)
        finally:
            self._turn = 0
            for job in jobs:
                drop_claim(job)
            self._nodes.wake()
        try:
            for self._turn, job in enumerate(jobs):
                self._nodes.wake()
                await asyncio.wait({job.done})  # a load ends by itself
        finally:
            self._turn = len(jobs)
        log.info("defrag %s: over after %.1f s", repack, self._nodes.clock() - began)

    async def _renew(self, repack: Repack) -> None:
        """Unload what is there, and have the worker restarted."""
        node, device = repack.node, repack.device
        for spec in repack.specs:
            try:
                await self._loads.unload(node, spec.id, force=False)
            except RemoteError as error:
                if error.code != "model_not_found":
                    raise  # it is in use after all: another time
        try:
            await node.client.post(f"/devices/{device}/restart", {}, RESTART_TIMEOUT_S)
        finally:
            del node.cycles[device]  # also if that failed, or it would be tried all the time
        node.defrags[device] += 1
        await poll(node, self._nodes)
