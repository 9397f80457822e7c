"""How late the event loop is: what every request waits for when it is too busy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter

EVERY_S = 0.25


async def measure_forever(tell: Callable[[float], None]) -> None:
    """Sleep again and again, and *tell* by how many seconds it was too long."""
    while True:
        due = perf_counter() + EVERY_S
        await asyncio.sleep(EVERY_S)
        tell(max(0.0, perf_counter() - due))
