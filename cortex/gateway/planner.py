"""
Which load goes where and when: decided in one synchronous stretch, on what is known now.

What a load is about to take counts as taken, and while one makes room on a node nothing else is
placed there.  A load that waits long claims room, the longest waiting first: nothing else is placed
there, and what is to go closes once it has been there long enough.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs

from cortex.api import EvictionPolicy
from cortex.config.schema import EvictionSection
from cortex.errors import CortexError
from cortex.fleet.model import ModelSpec
from cortex.fleet.node import LoadJob
from cortex.gateway.catalogue import Names
from cortex.gateway.nodes import Node, Nodes
from cortex.gateway.placement import Nowhere, Placement, Rules, feasible_on, place, share_mb
from cortex.gateway.queue import Queues

WAITING = "waiting for room"
log = logging.getLogger(__name__)


@attrs.define(kw_only=True, eq=False)
class Job:
    """
    One load; `done` carries its end to all who wait.

    Attributes:
        tried: What went wrong, by node.
        claim: Where it takes its turn.
        held: Tells whether it must not begin yet.
        is_modest: While nobody waits for it, it rather ends than take room others may want.
    """

    spec: ModelSpec
    done: asyncio.Future[None]
    wanted_on: str | None = None
    task: asyncio.Task[None] | None = None
    placement: Placement | None = None
    misfits: int = 0
    stage: str = "placing"
    waiting: int = 0
    began: float
    tried: dict[str, CortexError] = attrs.field(factory=dict)
    claim: Placement | None = None
    held: Callable[[], bool] = lambda: False
    is_modest: bool = False

    def view(self, waiting: int) -> LoadJob:
        """Return what the admin API shows; *waiting* requests wait for the model."""
        node = self.placement.node if self.placement else None
        model = node.models.get(self.spec.id) if node else None
        return LoadJob(
            model=self.spec.id,
            node=node.name if node else None,
            stage=(model.stage if model and self.stage == "loading" else None) or self.stage,
            progress=model.progress if model else None,
            eta_s=model.eta_s if model else None,
            waiting=self.waiting + waiting,
            evicting=self.placement.evict if self.placement else (),
        )


class Planner:
    """Places loads; *jobs* are those under way, the oldest first."""

    def __init__(
        self,
        *,
        config: EvictionSection,
        nodes: Nodes,
        names: Names,
        policy: EvictionPolicy,
        queues: Queues[Any],
    ) -> None:
        self.jobs: dict[str, Job] = {}
        self.needs_mb: dict[str, int] = {}
        self.config = config
        self._nodes = nodes
        self._names = names
        self._policy = policy
        self._queues = queues

    def adopt(self, config: EvictionSection, policy: EvictionPolicy) -> None:
        """Go by another configuration from now on."""
        self.config, self._policy = config, policy

    def nodes_for(self, job: Job) -> list[Node]:
        """Return the nodes where *job* may go."""
        if job.wanted_on is None:
            return list(self._nodes)
        return [node for node in self._nodes if node.name == job.wanted_on]

    def having(self, job: Job) -> list[Node]:
        """Return those of them that show its model."""
        nodes = self._nodes.having(job.spec.id)
        return [node for node in nodes if job.wanted_on in (None, node.name)]

    def place(
        self, job: Job, nodes: Iterable[Node] | None = None, polite: bool = True
    ) -> Placement | Nowhere:
        """Return where *job* goes now; unless *polite*, where it would if nobody used anything."""
        others = list(self._placed_besides(job))
        claims = [o.claim for o in self.jobs.values() if o is not job and o.claim is not None]
        rules = Rules(
            policy=self._policy,
            min_residency_s=self.config.min_residency_s if polite else 0.0,
            needs_mb=self.needs_mb,
            specs=self._names.specs,
            now=self._nodes.clock(),
            reserved_mb=self._reserved_mb(others),
            making_room={at.node.name for other, at in others if other.stage.startswith("evict")},
            claimed={(claim.node.name, device) for claim in claims for device in claim.devices},
            wanted=self._queues,
            polite=polite,
        )
        return place(job.spec, self.nodes_for(job) if nodes is None else nodes, job.tried, rules)

    def at_work(self, node: Node) -> bool:
        """Tell whether a load is under way on *node*, or could soon be."""
        placed = (at for job in self.jobs.values() for at in (job.placement, job.claim))
        return any(at is not None and at.node is node for at in placed) or self._is_sought(node)

    def _is_sought(self, node: Node, besides: Job | None = None) -> bool:
        """Tell whether a load has no place yet, and may get one on *node*."""
        return any(
            job.placement is None
            and not job.held()
            and job.wanted_on in (None, node.name)
            and feasible_on(job.spec, node, self.needs_mb) is None
            for job in self.jobs.values()
            if job is not besides
        )

    def gives_way(self, job: Job, found: Placement | Nowhere) -> bool:
        """Tell whether *job* ends for others, or for lack of room, though it may go to *found*."""
        if not job.is_modest or job.waiting or job.spec.id in self._queues:
            return False
        if not isinstance(found, Placement) or found.evict:
            return True
        return self._is_sought(found.node, besides=job)

    def give_turns(self) -> None:
        """Let those who have waited long enough for room claim it, the longest waiting first."""
        now, config = self._nodes.clock(), self.config
        for job in self.jobs.values():
            if job.stage != WAITING or now - job.began < config.max_turn_s:
                continue
            if job.claim is not None and is_stale(job.claim):
                drop_claim(job)
            if job.claim is None and isinstance(found := self.place(job, polite=False), Placement):
                log.info("%s takes its turn from %s", job.spec.id, ", ".join(found.evict))
                job.claim = found
            if job.claim is not None:
                node = job.claim.node
                old = (m for m in job.claim.evict if node.age_s(m, now) >= config.min_residency_s)
                node.closing.update(old)

    def _placed_besides(self, job: Job) -> Iterator[tuple[Job, Placement]]:
        for other in self.jobs.values():
            if other is not job and other.placement is not None:
                yield other, other.placement

    def _reserved_mb(self, placed: list[tuple[Job, Placement]]) -> Callable[[Node, int], int]:
        """Return what tells how much of a device loads under way will yet take."""
        there: dict[str, list[tuple[Job, Placement]]] = {}
        for pair in placed:
            there.setdefault(pair[1].node.name, []).append(pair)

        def reserved_mb(node: Node, device: int) -> int:
            on = [job.spec for job, at in there.get(node.name, ()) if device in at.devices]
            return sum(max(0, share_mb(spec, self.needs_mb) - taken_mb(spec, node)) for spec in on)

        return reserved_mb


def taken_mb(spec: ModelSpec, node: Node) -> int:
    """Return what *spec* takes of each of its devices already."""
    shown = node.models.get(spec.id)
    return shown.vram_used_mb // spec.min_devices if shown else 0


def is_stale(claim: Placement) -> bool:
    """Tell whether waiting for *claim* is in vain: its node is gone, or all that was to go is."""
    node = claim.node
    return not (node.healthy and any(model in node.models for model in claim.evict))


def drop_claim(job: Job) -> None:
    """Let what was to go for *job* be asked again."""
    if job.claim is not None:
        job.claim.node.closing.difference_update(job.claim.evict)
        job.claim = None
