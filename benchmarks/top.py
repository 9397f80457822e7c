"""
What ``cortex top`` costs at rest, and how soon an event of the gateway is on the terminal.

Plays a gateway of 10 nodes with 20 models each, runs the dashboard in a terminal of two sizes, and
prints the share of a core it takes while nothing but the figures of devices changes, and the
milliseconds from an event being sent to its words being written to the terminal.

    python benchmarks/top.py [--seconds S] [--events N] [--only N] [--profile FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import pty
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from statistics import median
from time import perf_counter

import msgspec
from aiohttp import web

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from cortex.config.schema import Address  # noqa: E402 - they are found by what stands above
from cortex.fleet.node import (  # noqa: E402
    Device,
    Fleet,
    FleetNode,
    Health,
    ModelHealth,
    NodeModel,
    Servable,
)
from cortex.web import listening, sse  # noqa: E402

NODES, MODELS = 10, 20
FIRST = "org/model-0-0"
SIZES = ((24, 80), (60, 200))
TARGET_MS, TARGET_SHARE = 100.0, 0.02
SETTLE_S = 3.0
LIMIT_S = 20.0
SPREAD = (0.05, 0.11, 0.23, 0.31, 0.17)  # pauses between events, which meet drawings and polls


def fleet(asked: int, reason: str = "") -> Fleet:
    """
    Return the fleet.

    Args:
        asked: How often it was asked for: figures of devices go by it.
        reason: Why the model of the first row cannot be used.
    """

    def node(number: int) -> FleetNode:
        models = [f"org/model-{number}-{model}" for model in range(MODELS)]
        device = Device(
            index=0,
            name="NVIDIA H100",
            vram_total_mb=81920,
            vram_used_mb=60000,
            utilization_pct=float((asked * 7 + number) % 100),
            temp_c=40.0 + asked % 3,
        )
        health = Health(
            status="ok",
            uptime_secs=1000 + 2 * asked,
            version="0",
            devices=(device,),
            models=tuple(ModelHealth(id=model, state="loaded") for model in models),
        )
        rows = tuple(
            NodeModel(
                id=model,
                status="loaded",
                devices=(0,),
                vram_used_mb=3000,
                servable=Servable(ok=not reason or model != FIRST, reason=reason or None),
            )
            for model in models
        )
        return FleetNode(
            name=f"node{number}", endpoint="http://x", healthy=True, health=health, models=rows
        )

    return Fleet(version="0", uptime_s=2.0 * asked, nodes=tuple(map(node, range(NODES))))


class Gateway:
    """Answers a dashboard, and tells it of events."""

    def __init__(self) -> None:
        self._asked, self._reason = 0, ""
        self._events: asyncio.Queue[bytes] = asyncio.Queue()
        self.app = web.Application()
        self.app.router.add_get("/api/v1/events", self._stream)
        self.app.router.add_get("/api/v1/fleet", self._fleet)

    def tell(self, reason: str) -> None:
        """Say why the model of the first row cannot be used."""
        self._reason = reason
        first = fleet(0, reason).nodes[0]
        self._events.put_nowait(sse("model", {"node": first.name, "model": first.models[0]}))

    async def _fleet(self, _: web.Request) -> web.Response:
        self._asked += 1
        body = msgspec.json.encode(fleet(self._asked, self._reason))
        return web.Response(body=body, content_type="application/json")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(sse("snapshot", fleet(self._asked, self._reason)))
        while True:
            await response.write(await self._events.get())


class Terminal:
    """A terminal in which the dashboard runs."""

    def __init__(self, ours: int, pid: int) -> None:
        self._ours, self._pid = ours, pid
        self._tail = b""
        self._wanted, self._came = b"", asyncio.Event()
        asyncio.get_running_loop().add_reader(ours, self._read)

    async def sees(self, text: str) -> None:
        """Wait until *text* is written."""
        self._wanted = text.encode()
        self._came.clear()
        if self._wanted not in self._tail:
            await asyncio.wait_for(self._came.wait(), LIMIT_S)

    def _read(self) -> None:
        with suppress(OSError):  # it has left
            self._tail = (self._tail + os.read(self._ours, 1 << 16))[-(1 << 17) :]
        if self._wanted in self._tail:
            self._came.set()

    def busy_s(self) -> float:
        """Return the seconds of a core it has taken."""
        fields = Path(f"/proc/{self._pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def dashboard(size: tuple[int, int], more: list[str], url: str) -> AsyncIterator[Terminal]:
    """Run one while inside."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, size)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *more, "-m", "cortex", "top", "--gateway", url,
        stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        yield Terminal(ours, process.pid)
    finally:
        os.write(ours, b"q")
        await asyncio.wait_for(process.wait(), LIMIT_S)
        asyncio.get_running_loop().remove_reader(ours)
        os.close(ours)


async def measure(size: tuple[int, int], args: argparse.Namespace) -> str:
    """Return what is to be said of one size."""
    gateway = Gateway()
    async with listening(gateway.app, Address("127.0.0.1", 0), drain_s=0) as address:
        more = ["-m", "cProfile", "-o", args.profile] if args.profile else []
        async with dashboard(size, more, f"http://{address}") as terminal:
            await terminal.sees("node0")
            await asyncio.sleep(SETTLE_S)
            before = terminal.busy_s()
            await asyncio.sleep(args.seconds)
            share = (terminal.busy_s() - before) / args.seconds
            took_ms = [ms async for ms in latencies(gateway, terminal, args.events)]
    return "\n".join(report(size, share, sorted(took_ms)))


async def latencies(gateway: Gateway, terminal: Terminal, events: int) -> AsyncIterator[float]:
    """Yield how long each event took."""
    for number in range(events):
        await asyncio.sleep(SPREAD[number % len(SPREAD)])
        began = perf_counter()
        gateway.tell(f"e{number}.")
        await terminal.sees(f"e{number}.")
        yield (perf_counter() - began) * 1000


def report(size: tuple[int, int], share: float, took_ms: list[float]) -> Iterator[str]:
    """Yield the lines."""
    yield f"{size[1]}x{size[0]}"
    yield f"  share of a core at rest  {share:.3f}  (target {TARGET_SHARE})"
    p99 = took_ms[len(took_ms) * 99 // 100]
    late = sum(ms > TARGET_MS for ms in took_ms)
    yield (
        f"  event to terminal, ms    median {median(took_ms):.0f}, p99 {p99:.0f},"
        f" worst {took_ms[-1]:.0f}; {late} of {len(took_ms)} over {TARGET_MS:.0f}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="at rest")
    parser.add_argument("--events", type=int, default=200, help="told one after the other")
    parser.add_argument("--profile", default="", help="write what cProfile saw; figures are worse")
    parser.add_argument("--only", type=int, help="0 for the small terminal, 1 for the large one")
    args = parser.parse_args()
    print(f"{NODES} nodes, {MODELS} models each; {os.cpu_count()} cores,", end=" ")
    print(f"Python {platform.python_version()}, load average {os.getloadavg()[0]:.1f}")
    for size in [SIZES[args.only]] if args.only is not None else SIZES:
        print(asyncio.run(measure(size, args)))


if __name__ == "__main__":
    main()
