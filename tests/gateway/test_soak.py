"""What comes and goes leaves nothing behind; benchmarks/soak.py does it for longer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cortex.testing import FakeNeuron, until
from tests.gateway.running import Running, Wire, chat, running

CLIENTS, EACH = 40, 50
POLLS = 4  # connections and tasks of them, at one time or another


async def come_and_go(gateway: Running, requests: int) -> int:
    """Send requests, each over its own connection; leave in the midst of every tenth."""
    left = 0
    for number in range(requests):
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m", stream=bool(number % 2)))
            if number % 10 == 9:
                await client.until(b"data: ")
                left += 1
                continue
            status, headers = await client.head()
            assert status == 200
            if "content-length" in headers:
                await client.exactly(int(headers["content-length"]))
            else:
                assert (await client.chunks()).endswith(b"[DONE]\n\n")
    return left


def held(gateway: Running) -> tuple[int, int]:
    """Return the file descriptors and the tasks of this process, kept connections aside."""
    kept = sum(len(node.client._idle) for node in gateway.gateway.nodes)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    return descriptors - 2 * kept, len(asyncio.all_tasks()) - kept


@pytest.mark.promises
async def test_thousands_of_requests_leave_no_descriptor_and_no_task(promise):
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        await come_and_go(gateway, 10)
        await until(lambda: len(gateway.records) == 10)
        before = held(gateway)

        def is_as_before(now: tuple[int, int]) -> bool:
            return all(new <= old + POLLS for new, old in zip(now, before, strict=True))

        left = sum(await asyncio.gather(*(come_and_go(gateway, EACH) for _ in range(CLIENTS))))

        await until(lambda: len(gateway.records) == 10 + CLIENTS * EACH)
        await until(lambda: is_as_before(held(gateway)))
        after = held(gateway)
        told = f"{CLIENTS * EACH} requests, {left} left midway"
        promise(20, f"{told}: descriptors, tasks {before} before, {after} after")
        assert is_as_before(after)
        assert gateway.in_flight() == node.in_flight.total() == 0
