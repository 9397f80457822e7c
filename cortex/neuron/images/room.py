"""Room for the pictures of requests: so many bytes, and who wants more waits in line, bounded."""

from __future__ import annotations

import asyncio
from collections import deque

from cortex.errors import QueueTimeout

WAIT_S = 60.0


class Room:
    """
    Event loop only.

    Attributes:
        free: Bytes nobody has.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = self.free = most_bytes
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> int:
        """
        Wait for *size* bytes, or all there are if that is more; `give` back what is returned.

        Raises:
            QueueTimeout: They did not come free within `WAIT_S`.
        """
        size = min(size, self._most)
        if not self._line and size <= self.free:
            self.free -= size
            return size
        coming: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((size, coming))
        try:
            await asyncio.wait({coming}, timeout=WAIT_S)
        except asyncio.CancelledError:
            self._drop(size, coming)
            raise
        if not coming.done():
            self._drop(size, coming)
            raise QueueTimeout(
                f"no room for {size >> 20} MiB of images came free in {WAIT_S:g} s",
                hint="harness.torch.images.max_waiting_mb of the neuron",
            )
        return size

    def give(self, size: int) -> None:
        """Give back so many bytes; whoever is first in line may get them."""
        self.free += size
        while self._line and self._line[0][0] <= self.free:
            taken, coming = self._line.popleft()
            self.free -= taken
            coming.set_result(None)

    def _drop(self, size: int, coming: asyncio.Future[None]) -> None:
        """Leave the line, or give back what came in this very moment."""
        if coming.done():
            self.give(size)
            return
        self._line.remove((size, coming))
        self.give(0)  # who stood behind may fit
