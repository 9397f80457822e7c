"""What is promised of clients that leave: docs/operations.md, 1."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from statistics import median
from time import perf_counter

import pytest

from cortex.fleet.model import ModelSpec
from cortex.testing import FakeNeuron, until
from tests.gateway.running import Running, Wire, chat, p99, running

pytestmark = pytest.mark.promises

CLIENTS, AT_ONCE = 1_000, 10
KINDS = {  # model, whether it streams
    "streaming": ("m", True),
    "not streaming": ("m", False),
    "queued": ("full", True),
    "queued, not streaming": ("full", False),
    "waiting for a load": ("cold", True),
    "waiting for a load, not streaming": ("cold", False),
}


class Noting(FakeNeuron):
    """A neuron that knows when it was asked what, and when it noticed that nobody listens."""

    def __init__(self, *loaded: str) -> None:
        super().__init__(loaded)
        self.began: set[str] = set()
        self.noticed: dict[str, float] = {}

    async def serve(self, request, *more):
        key = request.headers["x-request-id"]
        self.began.add(key)
        try:
            return await super().serve(request, *more)
        except asyncio.CancelledError:
            self.noticed[key] = perf_counter()
            raise


def sockets() -> int:
    """Return how many this process has open."""
    fds = list(Path("/proc/self/fd").iterdir())
    return sum(str(fd.readlink()).startswith("socket:") for fd in fds if fd.is_symlink())


@pytest.mark.timeout(120)
async def test_a_thousand_clients_that_leave_at_any_time_leave_nothing_behind(promise):
    dice = random.Random(0)
    models = [ModelSpec(id=name) for name in ("m", "full", "cold")]
    left: dict[str, float] = {}
    phases: Counter[str] = Counter()
    async with Noting("m") as node, Noting("full") as small:
        small.max_in_flight = 1
        node.answer, node.token_s, small.ending = "word " * 1_000, 0.02, "hang"
        node.may_load.clear()
        small.may_load.clear()
        async with running(node, small, models=models) as gateway:

            async def come_and_go(number: int) -> None:
                kind = dice.choice([*KINDS])
                model, streams = KINDS[kind]
                key, patience_s = f"r{number}", dice.expovariate(50)
                async with await Wire.to(gateway.address) as client:
                    client.post(chat(model, stream=streams), headers=f"X-Request-Id: {key}\r\n")
                    if model == "m" and dice.random() < 0.7:
                        await until(lambda: key in node.began, 20)
                    await asyncio.sleep(patience_s)  # perhaps nobody has read the request yet
                    if key in node.began:
                        left[key] = perf_counter()
                phases[kind] += 1

            async def clients(numbers: range) -> None:
                for number in numbers:
                    await come_and_go(number)

            async with await Wire.to(gateway.address) as holder:
                holder.post(chat("full"))  # has the one seat there is
                await until(lambda: small.in_flight["full"] == 1)
                await clients(range(CLIENTS, CLIENTS + 50))  # everything has happened once
                await settled(gateway)
                tasks, open_sockets = len(asyncio.all_tasks()), sockets()

                each = CLIENTS // AT_ONCE
                async with asyncio.TaskGroup() as crowd:
                    for number in range(AT_ONCE):
                        crowd.create_task(clients(range(number * each, (number + 1) * each)))
                await settled(gateway)
                await until(lambda: left.keys() <= node.noticed.keys())
                took = [1e3 * (node.noticed[key] - left[key]) for key in left]
                figure = f"{median(took):.1f} ms at p50, {p99(took):.1f} at p99 of {len(took)}"
                promise(1, f"a cancel reached the neuron in {figure} (asked: 20 at p99)")
                await until(lambda: len(asyncio.all_tasks()) <= tasks)
                await until(lambda: sockets() <= open_sockets)
                promise(1, f"{CLIENTS} clients that left: no task, no socket, nothing in flight")

    assert len(left) > 100
    assert min(phases[kind] for kind in KINDS) > 100
    assert node.in_flight.total() == 0
    assert gateway.counted("cortex_requests_total") == len(gateway.records)
    for phase in ("queued", "sent", "answering"):
        assert gateway.counted("cortex_request_cancels_total", phase=phase) > 100
    assert p99(took) < 5_000


async def settled(gateway: Running) -> None:
    """Wait until nothing is under way but the one that has the seat."""
    await until(lambda: gateway.in_flight() == 1 and gateway.waiting == 0, 10)
