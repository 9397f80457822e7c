"""The requests under way, and the last that are over: to be looked at, and to be cancelled."""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter

import attrs

from cortex.errors import CortexError, RouteNotFound
from cortex.fleet.model import RequestRecord
from cortex.fleet.node import RequestState
from cortex.gateway.loads import Loads
from cortex.gateway.recording import Recording

KEPT = 512


@attrs.define(kw_only=True, eq=False)
class Open:
    """
    A request under way.

    Attributes:
        task: What answers it.
        why: What its client is told, once somebody else than the client has cancelled it.
    """

    recording: Recording
    task: asyncio.Task[object]
    why: CortexError | None = None

    def cancel(self, why: CortexError) -> None:
        """End it; the client is told *why*."""
        if self.why is None:
            self.why = why
            self.task.cancel()


class Requests:
    """
    Every request is entered once, and left once with its record.

    Attributes:
        closed: Why no other is taken, if so.
    """

    def __init__(self, loads: Loads) -> None:
        self.closed: CortexError | None = None
        self._loads = loads
        self._open: dict[Open, None] = {}  # in the order they came
        self._idle = asyncio.Event()
        self._idle.set()
        self._over: deque[tuple[float, RequestRecord]] = deque(maxlen=KEPT)

    def __len__(self) -> int:
        return len(self._open)

    def close(self, why: CortexError) -> None:
        """Take no other from now on."""
        self.closed = why

    def check_open(self) -> None:
        """Raise the reason if no other is taken."""
        if self.closed is not None:
            raise self.closed.with_traceback(None)

    def enter(self, recording: Recording) -> Open:
        """Note a request that the current task is going to answer."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - handlers run in tasks
        entry = Open(recording=recording, task=task)
        self._open[entry] = None
        self._idle.clear()
        return entry

    def leave(self, entry: Open, record: RequestRecord) -> None:
        """Note that a request is over."""
        del self._open[entry]
        if not self._open:
            self._idle.set()
        self._over.append((entry.recording.began, record))

    def cancel(self, request_id: str, why: CortexError) -> int:
        """
        End the requests of an id, wherever they are; return how many.

        Raises:
            RouteNotFound: None is under way.
        """
        found = [entry for entry in self._open if entry.recording.id == request_id]
        if not found:
            raise RouteNotFound(f"no request under way has the id {request_id!r}")
        for entry in found:
            entry.cancel(why)
        return len(found)

    def cancel_all(self, why: CortexError) -> None:
        """End every request under way."""
        for entry in list(self._open):
            entry.cancel(why)

    async def idle(self) -> None:
        """Return once none is under way."""
        await self._idle.wait()

    def recordings(self) -> list[Recording]:
        """Return what is recorded of those under way."""
        return [entry.recording for entry in self._open]

    def states(self) -> list[RequestState]:
        """Return those under way and the last that are over, the newest first of each."""
        now = perf_counter()
        under_way = [self._under_way(entry.recording, now) for entry in self._open]
        done = [over(record, now - began) for began, record in self._over]
        return [*reversed(under_way), *reversed(done)]

    def _under_way(self, recording: Recording, now: float) -> RequestState:
        exchange, ttft_s = recording.exchange, None
        state = "loading" if self._loads.view(recording.model) else "queued"
        if exchange is not None:
            state = "answering" if exchange.first_byte_s else "sent"
            if exchange.first_byte_s:
                ttft_s = round(exchange.first_byte_s - recording.began, 4)
        return RequestState(
            id=recording.id,
            state=state,
            model=recording.model,
            node=recording.node,
            dialect=recording.dialect,
            operation=recording.operation,
            principal=recording.principal.name,
            status=exchange.status if exchange is not None else 0,
            age_s=round(now - recording.began, 3),
            ttft_s=ttft_s,
            completion_tokens=exchange.events if exchange is not None else 0,
        )


def over(record: RequestRecord, age_s: float) -> RequestState:
    """Return what is shown of a request that is over; it came *age_s* ago."""
    return RequestState(
        id=record.id,
        state=record.outcome,
        model=record.model,
        node=record.node,
        dialect=record.dialect,
        operation=record.operation,
        principal=record.principal,
        status=record.status,
        age_s=round(age_s, 3),
        duration_s=round(record.duration_s, 4),
        ttft_s=None if record.ttft_s is None else round(record.ttft_s, 4),
        prompt_tokens=record.prompt_tokens,
        completion_tokens=record.completion_tokens,
    )
