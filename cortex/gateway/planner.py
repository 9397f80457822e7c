"""
Which load goes where and when: decided in one synchronous stretch, on what is known now.

What a load is about to take counts as taken, and while one makes room on a node nothing else is
placed there.  A load that waits long claims room, the longest waiting first: nothing else is placed
there, and what is to go closes once it has been there long enough.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from cortex.api import EvictionPolicy
from cortex.config.schema import EvictionSection
from cortex.errors import CortexError
from cortex.fleet.model import ModelSpec
from cortex.fleet.node import LoadJob
from cortex.gateway.catalogue import Names
from cortex.gateway.node import Node
from cortex.gateway.nodes import Nodes
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
    """
    Places loads.

    Attributes:
        jobs: Those under way, the oldest first.
        needs_mb: Measured memory of models, by id.
        making_room: Names of nodes where one of them evicts right now.
    """

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
        self.making_room: set[str] = set()
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
        node = self._nodes.get(job.wanted_on)
        return [] if node is None else [node]

    def having(self, job: Job) -> list[Node]:
        """Return those of them that show its model."""
        nodes = self._nodes.having(job.spec.id)
        return [node for node in nodes if job.wanted_on in (None, node.name)]

    def place(
        self, job: Job, nodes: Iterable[Node] | None = None, polite: bool = True
    ) -> Placement | Nowhere:
        """Return where *job* goes now; unless *polite*, where it would if nobody used anything."""
        spec = job.spec
        claims = [o.claim for o in self.jobs.values() if o.claim is not None and o is not job]
        rules = Rules(
            policy=self._policy,
            min_residency_s=self.config.min_residency_s if polite else 0.0,
            needs_mb=self.needs_mb,
            specs=self._names.specs,
            now=self._nodes.clock(),
            reserved_mb=lambda node, device: node.reserved_mb(device, besides=spec.id),
            making_room=self.making_room,
            claimed={(claim.node.name, device) for claim in claims for device in claim.devices},
            wanted=self._queues,
            polite=polite,
        )
        if nodes is not None:
            return place(spec, list(nodes), job.tried, rules)
        roomy = (
            self._nodes.with_room(share_mb(spec, self.needs_mb)) if job.wanted_on is None else None
        )
        return place(spec, self.nodes_for(job), job.tried, rules, roomy)

    def settle(self, job: Job, placement: Placement) -> None:
        """Let *job* go there: what it is about to take counts as taken."""
        self.unsettle(job)
        job.placement = placement
        share = share_mb(job.spec, self.needs_mb)
        self._nodes.reserve(placement.node, job.spec.id, share, placement.devices)

    def unsettle(self, job: Job) -> None:
        """Let *job* look for a place again, or end."""
        if job.placement is not None:
            self._nodes.release(job.placement.node, job.spec.id)
            job.placement = None

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


def is_stale(claim: Placement) -> bool:
    """Tell whether waiting for *claim* is in vain: its node is gone, or all that was to go is."""
    node = claim.node
    return not (node.healthy and any(model in node.models for model in claim.evict))


def drop_claim(job: Job) -> None:
    """Let what was to go for *job* be asked again."""
    if job.claim is not None:
        job.claim.node.closing.difference_update(job.claim.evict)
        job.claim = None
