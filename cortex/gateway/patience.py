"""
How long a neuron may take for a load: as long as it gets on with it, within a bound.

What it takes depends on its disk and its network, which the gateway does not know; that it gets on
it shows in its rows of ``/models``, which are polled anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from cortex.gateway.neuron_client import UpstreamSlow
from cortex.gateway.node import Node

QUIET_S = 300.0
QUIET_S_PER_GIB = 20.0
LONGEST_S = 6 * 3600.0  # 400 GiB at 20 MB/s
LOOK_S = 1.0


def quiet_s(need_mb: int) -> float:
    """Return for how long a neuron may tell of no progress; *need_mb* is 0 if nobody knows."""
    return QUIET_S + QUIET_S_PER_GIB * need_mb / 1024


@asynccontextmanager
async def patience(
    node: Node, model: str, most_s: float, tasks: asyncio.TaskGroup
) -> AsyncGenerator[None, None]:
    """
    Bound what is awaited within: a load of *model* by *node*.

    Args:
        node: Who loads.
        model: What.
        most_s: How long it may tell of no progress.
        tasks: Where to follow it.

    Raises:
        UpstreamSlow: It told of none for so long, or `LONGEST_S` are over.
    """
    try:
        async with asyncio.timeout(most_s) as bound:
            following = tasks.create_task(
                _follow(node, model, most_s, bound), name=f"follow {model}"
            )
            try:
                yield
            finally:
                following.cancel()
    except TimeoutError:
        raise UpstreamSlow(
            f"node {node.name} has told of no progress with {model} for {most_s:.0f} s,"
            f" or not loaded it in {LONGEST_S:.0f} s"
        ) from None


async def _follow(node: Node, model: str, most_s: float, bound: asyncio.Timeout) -> None:
    """Put *bound* off whenever there is progress; until cancelled."""
    before, time = told(node, model), asyncio.get_running_loop().time
    last = time() + LONGEST_S
    while True:
        await asyncio.sleep(LOOK_S)
        now = told(node, model)
        if now is not None and now != before and not bound.expired():
            before = now
            bound.reschedule(min(time() + most_s, last))


def told(node: Node, model: str) -> tuple[str | None, float | None] | None:
    """Return how far *node* says that it is with *model*."""
    row = node.models.get(model)
    return (row.stage, row.progress) if row is not None and row.status == "loading" else None
