"""Places for the requests of one model."""

from __future__ import annotations

import asyncio

import pytest

from cortex.api import Places
from cortex.testing import until


async def test_who_came_first_gets_the_next_place_and_who_leaves_takes_none():
    places, order = Places(1), []

    async def come(name, go):
        async with places.take():
            order.append(name)
            await go.wait()

    gates = [asyncio.Event() for _ in range(4)]
    tasks = []
    for name, gate in zip("abcd", gates, strict=True):
        tasks.append(asyncio.create_task(come(name, gate)))
        await until(lambda: places.taken + places.waiting == len(tasks))
    assert (places.taken, places.waiting) == (1, 3)

    tasks[1].cancel()
    await asyncio.wait({tasks[1]})
    assert (places.taken, places.waiting) == (1, 2)
    for gate in gates:
        gate.set()
    await asyncio.gather(tasks[0], *tasks[2:])
    assert order == ["a", "c", "d"]
    assert (places.taken, places.waiting) == (0, 0)


async def test_who_fails_gives_its_place_back():
    places = Places(1)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            async with places.take():
                assert places.taken / 0
    assert (places.taken, places.waiting) == (0, 0)
