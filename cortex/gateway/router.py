"""
Which node answers a request: one that has the model loaded, else one it is loaded on now.

A request that cannot go at once waits in its model's queue, and is told its node when its turn has
come and a node has a seat for it.
"""

from __future__ import annotations

import asyncio
from copy import deepcopy

import attrs

from cortex.api import RoutingStrategy
from cortex.chat.request import RequestHead
from cortex.config.schema import QueueSection
from cortex.errors import (
    CortexError,
    ModelLoading,
    NoNodeAvailable,
    OperationUnsupported,
    QueueTimeout,
    UpstreamUnreachable,
)
from cortex.fleet.model import Candidate, ModelSpec
from cortex.gateway.hold import Hold
from cortex.gateway.loads import Loads, load_body
from cortex.gateway.node import Node
from cortex.gateway.nodes import Nodes
from cortex.gateway.placement import feasible_on, state_of
from cortex.gateway.queue import Queue, Queues, Ticket
from cortex.gateway.translation import Translators
from cortex.plugins import at_fault

TOKENIZER_TIMEOUT_S = 300.0  # it may have to be fetched
ALL_EVERY_S = 1.0  # some things change by time alone


@attrs.define(kw_only=True, eq=False)
class Waiting(Ticket):
    """
    A request in a queue.

    Attributes:
        avoid: A node to ask only if no other can be.
        seat: The node it may go to, once there is one.
    """

    head: RequestHead
    avoid: Node | None
    seat: asyncio.Future[Node]


class Router:
    """Routes at once where it can, and lets a request wait for its turn, bounded, where it must."""

    def __init__(
        self,
        *,
        nodes: Nodes,
        loads: Loads,
        queues: Queues[Waiting],
        strategy: RoutingStrategy,
        translators: Translators,
        config: QueueSection,
    ) -> None:
        self._nodes = nodes
        self._translators = translators
        self._loads = loads
        self._queues = queues
        self._strategy = strategy
        self._max_wait_s = config.max_wait_s
        self._closed: CortexError | None = None
        loads.on_end = self._load_ended

    def adopt(self, strategy: RoutingStrategy, config: QueueSection) -> None:
        """Go by another configuration from now on."""
        self._strategy, self._max_wait_s = strategy, config.max_wait_s

    async def route(
        self,
        head: RequestHead,
        spec: ModelSpec,
        hold: Hold | None = None,
        avoid: Node | None = None,
    ) -> tuple[Node, str]:
        """
        Return the node to ask, and how it came to have the model; `leave` it afterwards.

        Args:
            head: The request.
            spec: What it asks for.
            hold: Keeps the client from giving up while it waits.
            avoid: A node to ask only if no other can be.

        Raises:
            CortexError: No node can answer, or not in time.
        """
        may_go = spec.id not in self._queues or head.operation == "count"
        if may_go and (node := self._choose(head, avoid)) is not None:
            return self._take(node, spec.id), "loaded"
        waiting = self._wait(head, spec, avoid)
        return await (hold.during(waiting) if hold else waiting)

    async def _wait(
        self, head: RequestHead, spec: ModelSpec, avoid: Node | None
    ) -> tuple[Node, str]:
        if self._closed is not None:
            raise self._closed.with_traceback(None)
        self._check_spoken(head, spec)
        if head.operation == "count":
            return self._take(await self._with_tokenizer(spec), spec.id), "tokenizer"
        how = self._how(spec)
        ticket = Waiting(
            principal=head.principal,
            priority=head.priority,
            weight=head.weight,
            since=self._nodes.clock(),
            head=head,
            avoid=avoid,
            seat=asyncio.get_running_loop().create_future(),
        )
        queue = self._queues.join(spec, ticket)
        try:
            self._tend(queue)
            await asyncio.wait({ticket.seat}, timeout=self._max_wait_s)
            if not ticket.seat.done():
                raise self._too_slow(queue, ticket)
            return ticket.seat.result(), how
        except asyncio.CancelledError:
            if ticket.seat.done() and ticket.seat.exception() is None:
                self.leave(ticket.seat.result(), spec.id)
            raise
        finally:
            self._queues.leave(queue, ticket)

    def leave(self, node: Node, model: str) -> None:
        """Give back the seat that `route` took."""
        node.in_flight[model] -= 1
        node.idle_again(model, self._nodes.clock())
        if (queue := self._queues.get(model)) is not None:
            self._seat(queue)
        if model in node.closing and not node.in_flight[model]:
            self._nodes.wake(())

    def close(self, why: CortexError) -> None:
        """Let go of all who wait, and let nobody wait any more."""
        self._closed = why
        for queue in self._queues:
            self._fail(queue, why)

    async def tend_forever(self) -> None:
        """Seat who waits whenever a node changes, and see that what is waited for is loaded."""
        at_all = 0.0
        while True:
            await self._nodes.changed(ALL_EVERY_S)
            concerned, now = self._nodes.concerned(), self._nodes.clock()
            if concerned is None or now - at_all >= ALL_EVERY_S:
                concerned, at_all = None, now
            for queue in self._queues:
                if concerned is None or queue.spec.id in concerned:
                    self._tend(queue)

    @property
    def reads_affinity(self) -> bool:
        """Whether the strategy wants to know which requests belong together."""
        return getattr(self._strategy, "reads_affinity", False)

    def would_choose(self, head: RequestHead) -> Node | None:
        """Return the node a request would get now; the strategy takes no note of it."""
        strategy, self._strategy = self._strategy, deepcopy(self._strategy)
        try:
            return self._choose(head, None)
        finally:
            self._strategy = strategy

    def is_only(self, node: Node, head: RequestHead) -> bool:
        """Tell whether *node* can be asked now, and no other."""
        return list(self._able(head)) == [node]

    def _take(self, node: Node, model: str) -> Node:
        node.in_flight[model] += 1
        node.note_use(model, self._nodes.clock())
        return node

    def _tend(self, queue: Queue[Waiting]) -> None:
        self._seat(queue)
        if queue and state_of(queue.spec.id, self._nodes.having(queue.spec.id)) == "absent":
            try:
                self._loads.want(queue.spec)
            except CortexError as error:
                self._fail(queue, error)

    def _seat(self, queue: Queue[Waiting]) -> None:
        """Give seats to whose turn it is, as long as there are seats."""
        while (ticket := queue.next(self._nodes.clock())) is not None:
            if (node := self._choose(ticket.head, ticket.avoid)) is None:
                return
            self._queues.take(queue, ticket)
            ticket.seat.set_result(self._take(node, queue.spec.id))

    def _load_ended(self, model: str, error: CortexError | None) -> None:
        if (queue := self._queues.get(model)) is None:
            return
        if error is not None:
            self._fail(queue, error)
        else:
            self._seat(queue)

    def _fail(self, queue: Queue[Waiting], error: CortexError) -> None:
        for ticket in list(queue):
            self._queues.leave(queue, ticket)
            ticket.seat.set_exception(error)
            ticket.seat.exception()  # its client may have left

    def _how(self, spec: ModelSpec) -> str:
        state = state_of(spec.id, self._nodes.having(spec.id))
        if state == "loaded":
            return "queued"
        is_cold = state == "absent" and self._loads.view(spec.id) is None
        return "cold-load" if is_cold else "joined-load"

    def _able(self, head: RequestHead) -> list[Node]:
        """Return the nodes that can answer now, only those that need no translation if any do."""
        serving = [node for node in self._nodes.having(head.model) if node.serves(head.model)]
        if awake := [node for node in serving if not node.rests(head.model)]:
            serving = awake
        ways = [self._translators.spoken(node, head) for node in serving]
        wanted = {head.dialect} if head.dialect in ways else {*ways} - {None}
        return [node for node, way in zip(serving, ways, strict=True) if way in wanted]

    def _choose(self, head: RequestHead, avoid: Node | None) -> Node | None:
        model, is_count = head.model, head.operation == "count"
        nodes = {n.name: n for n in self._able(head) if is_count or n.has_seat(model)}
        if not nodes:
            return None
        if avoid is not None and len(nodes) > 1:
            nodes.pop(avoid.name, None)
        if len(nodes) == 1 and not self.reads_affinity:
            return next(iter(nodes.values()))
        candidates = [
            Candidate(
                node=name,
                in_flight=node.in_flight[model],
                queued=node.queued(model),
                kv_used_pct=node.kv_used_pct(model),
            )
            for name, node in nodes.items()
        ]
        try:
            return nodes[self._strategy.choose(head, candidates).node]
        except Exception as error:  # noqa: BLE001 - a stranger's
            raise at_fault("routing strategy", self._strategy, error) from None

    def _check_spoken(self, head: RequestHead, spec: ModelSpec) -> None:
        having = [node.name for node in self._nodes.having(spec.id) if node.serves(spec.id)]
        if having and not self._able(head):
            raise OperationUnsupported(
                f"{spec.id} is on {', '.join(having)}, which cannot be asked in {head.dialect}"
            )

    async def _with_tokenizer(self, spec: ModelSpec) -> Node:
        """Return a node that can count tokens for a model nobody has loaded."""
        able = [n for n in self._nodes if n.healthy and feasible_on(spec, n) is None]
        said = []
        for node in able:
            try:
                await node.client.post("/models/tokenizer", load_body(spec), TOKENIZER_TIMEOUT_S)
            except UpstreamUnreachable as error:
                said.append(f"{node.name}: {error}")
            else:
                return node
        raise NoNodeAvailable(
            f"no node can count the tokens of {spec.id}: {'; '.join(said) or 'none could hold it'}"
        )

    def _too_slow(self, queue: Queue[Waiting], ticket: Waiting) -> CortexError:
        model = queue.spec.id
        details: dict[str, object] = {"position": queue.position(ticket, self._nodes.clock())}
        if state_of(model, self._nodes.having(model)) == "loaded":
            return QueueTimeout(
                f"no turn on {model} came in {self._max_wait_s:g} s", details=details
            )
        job = self._loads.view(model)
        if job is not None:
            details |= {"state": job.stage, "node": job.node}
        if job is not None and job.progress is not None:
            details |= {"progress": job.progress, "eta_s": job.eta_s}
        return ModelLoading(
            f"{model} is not loaded after {self._max_wait_s:g} s",
            retry_after_s=job.eta_s if job else None,
            details=details,
        )
