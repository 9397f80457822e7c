"""A model of the built-in engine while it is loaded, as the neuron sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import attrs

from cortex.neuron.engine import jobs
from cortex.neuron.text.side import Text
from cortex.neuron.workers import DeviceWorker


@attrs.define(kw_only=True)
class Running:
    """
    A loaded model: where it runs, its text side, and what it is doing.

    Attributes:
        width: Components of the vectors it makes; None if it makes text.
        slots: Places on the device.
    """

    worker: DeviceWorker
    text: Text
    context: int
    defaults: Mapping[str, float]
    slots: asyncio.Semaphore
    width: int | None = None
    in_flight: int = 0
    waiting: int = 0
    tok_s_prefill: float = 0.0
    tok_s_decode: float = 0.0

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[None, None]:
        """Hold a place on the device; wait for one as long as it takes."""
        self.waiting += 1
        try:
            await self.slots.acquire()  # a client that gives up cancels this wait
        finally:
            self.waiting -= 1
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            self.slots.release()

    def count(self, prompt_tokens: int, done: jobs.Done) -> None:
        """Take a finished request into the smoothed rates."""
        if done.prefill_ms:
            self.tok_s_prefill = smooth(self.tok_s_prefill, 1e3 * prompt_tokens / done.prefill_ms)
        if done.decode_ms and done.completion_tokens > 1:
            rate = 1e3 * (done.completion_tokens - 1) / done.decode_ms
            self.tok_s_decode = smooth(self.tok_s_decode, rate)


def smooth(old: float, new: float) -> float:
    """Return the running mean of a rate, in tokens per second."""
    return new if not old else 0.8 * old + 0.2 * new
