"""What contracts say with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic


async def until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    """Wait for *condition*; `AssertionError` if it does not come true in time."""
    deadline = monotonic() + timeout_s
    while not condition():
        expect(monotonic() < deadline, f"nothing came of it in {timeout_s:g} s")
        await asyncio.sleep(0.005)


def expect(holds: object, sentence: str) -> None:
    """Raise `AssertionError` with *sentence* unless *holds*."""
    if not holds:
        raise AssertionError(sentence)
