"""Places for the requests of one model, for harnesses that bound how many they run at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class Places:
    """
    So many places; event loop only.

    Attributes:
        taken: How many are.
        waiting: How many requests wait for one.
    """

    def __init__(self, count: int) -> None:
        self.taken = self.waiting = 0
        self._free = asyncio.Semaphore(count)

    @asynccontextmanager
    async def take(self) -> AsyncGenerator[None, None]:
        """Hold a place; wait for one as long as it takes, in the order of those who came."""
        self.waiting += 1
        try:
            await self._free.acquire()  # a client that gives up cancels this wait
        finally:
            self.waiting -= 1
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1
            self._free.release()
