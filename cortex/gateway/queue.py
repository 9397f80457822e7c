"""
Who is next: the requests that wait for one model.  Pure; the clock is an argument.

Principals take turns by start-time fair queueing (Goyal, Vin and Cheng, 1996): each has a lane of
its own, and the lane whose turn began earliest in virtual time goes first, so that a principal with
a thousand requests delays one with a single request by one turn.  A higher priority goes before a
lower one; waiting raises it, so nobody starves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

import attrs

from cortex.errors import QueueFull
from cortex.fleet.model import ModelSpec

AGEING_S = 30.0  # waiting this long is worth one step of priority


@attrs.define(kw_only=True, eq=False)
class Ticket:
    """
    One request that waits.

    Attributes:
        since: When it began to wait, monotonic seconds.
        cost: What it takes of its principal's turn, any unit.
        weight: How large a share its principal has; 2 gets twice what 1 gets.
        begins: When its turn begins, virtual time.
    """

    principal: str = ""
    priority: int = 0
    since: float
    cost: float = 1.0
    weight: float = 1.0
    begins: float = 0.0

    def rank(self, now: float) -> tuple[int, float, float]:
        """Return what the next one has least of."""
        aged = self.priority + int((now - self.since) / AGEING_S)
        return -aged, self.begins, self.since


T = TypeVar("T", bound=Ticket)


class Queue(Generic[T]):
    """The tickets of one model, at most *max_depth*."""

    def __init__(self, spec: ModelSpec, max_depth: int) -> None:
        self.spec = spec
        self.max_depth = max_depth
        self._lanes: dict[tuple[str, int], deque[T]] = {}
        self._ends: dict[str, float] = {}  # of each principal's last turn, virtual time
        self._virtual = 0.0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        for lane in self._lanes.values():
            yield from lane

    def join(self, ticket: T) -> None:
        """
        Let *ticket* wait.

        Raises:
            QueueFull: Says how many wait already.
        """
        if self._length >= self.max_depth:
            raise QueueFull(
                f"{self._length} requests wait for {self.spec.id} already",
                details={"position": self._length + 1},
            )
        ticket.begins = max(self._virtual, self._ends.get(ticket.principal, 0.0))
        self._ends[ticket.principal] = ticket.begins + ticket.cost / ticket.weight
        self._lanes.setdefault((ticket.principal, ticket.priority), deque()).append(ticket)
        self._length += 1

    def leave(self, ticket: T) -> None:
        """Let a ticket go that waits no more; nothing if it is gone already."""
        key = ticket.principal, ticket.priority
        if ticket not in (lane := self._lanes.get(key, deque())):
            return
        lane.remove(ticket)
        self._shrink(key)

    def next(self, now: float) -> T | None:
        """Return whose turn it is, or None; it stays until it is taken with `take`."""
        heads = (lane[0] for lane in self._lanes.values())
        return min(heads, key=lambda ticket: ticket.rank(now), default=None)

    def take(self, ticket: T) -> None:
        """Let the one whose turn it is go."""
        self._virtual = max(self._virtual, ticket.begins)
        self.leave(ticket)

    def position(self, ticket: T, now: float) -> int:
        """Return how many go before *ticket* as things are, and itself."""
        rank = ticket.rank(now)
        return 1 + sum(other.rank(now) < rank for other in self if other is not ticket)

    def _shrink(self, key: tuple[str, int]) -> None:
        self._length -= 1
        if not self._lanes[key]:
            del self._lanes[key]
        if not self._length:
            self._ends.clear()
            self._virtual = 0.0


class Queues(Generic[T]):
    """The queues that have anybody in them, by model; *max_depth* may change."""

    def __init__(self, max_depth: int) -> None:
        self.max_depth = max_depth
        self._queues: dict[str, Queue[T]] = {}

    def __iter__(self) -> Iterator[Queue[T]]:
        return iter(list(self._queues.values()))

    def __contains__(self, model: object) -> bool:
        return model in self._queues

    def get(self, model: str) -> Queue[T] | None:
        return self._queues.get(model)

    def length(self, model: str) -> int:
        """Return how many wait for *model*."""
        return len(self._queues.get(model, ()))

    def join(self, spec: ModelSpec, ticket: T) -> Queue[T]:
        """Let *ticket* wait for *spec*; raises `QueueFull`."""
        queue = self._queues.setdefault(spec.id, Queue(spec, self.max_depth))
        queue.max_depth = self.max_depth
        queue.join(ticket)
        return queue

    def leave(self, queue: Queue[T], ticket: T) -> None:
        """Let a ticket go that waits no more; nothing if it is gone already."""
        queue.leave(ticket)
        self._drop(queue)

    def take(self, queue: Queue[T], ticket: T) -> None:
        """Let the one whose turn it is go."""
        queue.take(ticket)
        self._drop(queue)

    def _drop(self, queue: Queue[T]) -> None:
        if not queue and self._queues.get(queue.spec.id) is queue:
            del self._queues[queue.spec.id]
