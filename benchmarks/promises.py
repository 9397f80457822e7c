"""
The promises that are figures, measured in one run: target beside what was found.

A fake neuron and a gateway run in processes of their own, and the clients in this one; their delay
is in what is measured.  The numbers are those of the table in docs/operations.md.

    python benchmarks/promises.py [--json] [--streams N] [--seconds S] [--slow N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from time import monotonic, perf_counter
from typing import cast

import attrs
import health
import uvloop
from fleet import STAMP, Client, Fleet, fleet, gateway_process, machine, many_descriptors
from fleet import neuron_process as neuron

SEATS, ANSWER_S = 25, 0.25  # 100 requests a second
DEPTH = 25
OVERLOAD = 3
PEAK_S = 0.2  # of how long the overload lasts
RECOVERED = 1.5  # times as long as an answer takes
OTHERS = 50
SIP_BYTES, SIP_S = 4096, 1.0
ROUNDS, EACH = 8, 50  # answers one after the other


@attrs.frozen
class Row:
    """A line of the table; *number* is 0 where it is not of a promise."""

    number: int
    what: str
    target: str
    measured: str


def ms(seconds: list[float], at: float) -> float:
    """Return the quantile *at*, in milliseconds."""
    return 1e3 * sorted(seconds)[int(at * (len(seconds) - 1))]


# 11


def saturation(streams: int, seconds: float) -> Iterator[Row]:
    """Ask for the health of a gateway that has much to do."""
    rows = health.run(streams, seconds, token_s=0.1)
    for name in (f"{streams} streams", "never rests"):
        found = cast("dict[str, dict[str, float]]", rows[name])["/healthz"]
        measured = f"{found['p99']:.1f} ms (p50 {found['p50']:.1f})"
        yield Row(11, f"/healthz, p99: {name}", "50 ms", measured)


# 12


@attrs.define
class Overload:
    """What became of requests, and when."""

    ok: list[float] = attrs.field(factory=list)  # when they ended
    refused_s: list[float] = attrs.field(factory=list)  # how long it took
    others: int = 0  # neither, or without Retry-After
    idle: list[Client] = attrs.field(factory=list)

    async def ask(self, port: int) -> float | None:
        """Send one request; return how long its answer took, if it was one."""
        client = self.idle.pop() if self.idle else await Client.to(port)
        began = perf_counter()
        answer = await client.ask("whole")
        took_s = perf_counter() - began
        self.idle.append(client)
        if answer.status == HTTPStatus.OK:
            self.ok.append(began + took_s)
            return took_s
        if answer.status == HTTPStatus.TOO_MANY_REQUESTS and "retry-after" in answer.headers:
            self.refused_s.append(took_s)
        else:
            self.others += 1
        return None

    def goodput(self, since: float) -> float:
        """Return the answers a second since *since*, up to the last."""
        ended = [at for at in self.ok if at >= since]
        return len(ended) / (max(ended) - since)


async def peak(port: int, seconds: float) -> float:
    """Return the answers a second while each seat is taken, and nobody too many comes."""
    found, until = Overload(), perf_counter() + seconds

    async def one() -> None:
        while perf_counter() < until:
            await found.ask(port)

    began = perf_counter()
    async with asyncio.TaskGroup() as clients:
        for _ in range(SEATS):
            clients.create_task(one())
    return found.goodput(began)


async def overload(port: int, seconds: float) -> list[Row]:
    """Send three times what can be answered, and then little."""
    best = await peak(port, max(1.0, PEAK_S * seconds))
    found, sent, began = Overload(), 0, perf_counter()
    async with asyncio.TaskGroup() as clients:
        while (now := perf_counter() - began) < seconds:
            while sent < now * OVERLOAD * best:
                clients.create_task(found.ask(port))
                sent += 1
            await asyncio.sleep(0.002)
        goodput = found.goodput(began)
        ended = perf_counter()
        while True:
            recovered_s = perf_counter() - ended
            took_s = await found.ask(port)
            if took_s is not None and took_s < RECOVERED * ANSWER_S:
                break
            await asyncio.sleep(0.02)
    share = f"{100 * goodput / best:.0f} % ({goodput:.0f} of {best:.0f} a second)"
    p50, p99 = ms(found.refused_s, 0.5), ms(found.refused_s, 0.99)
    return [
        Row(12, f"{OVERLOAD} x overload for {seconds:g} s: goodput", "95 % of peak", share),
        Row(12, "refused with Retry-After, p99", "10 ms", f"{p99:.1f} ms (p50 {p50:.1f})"),
        Row(12, f"neither answered nor refused so, of {sent}", "0", f"{found.others}"),
        Row(12, "as fast as before, after it", "2 s", f"{recovered_s:.2f} s"),
    ]


def refused_soon(metrics_port: int) -> str:
    """Return how many of the requests that reached no node were over within 10 ms."""
    url = f"http://127.0.0.1:{metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=60) as answer:
        said = answer.read().decode()
    name = "cortex_request_duration_seconds_bucket"
    counts = dict(re.findall(rf'{name}{{[^}}]*le="([^"]+)"[^}}]*node=""[^}}]*}} (\S+)', said))
    soon, all_ = float(counts.get("0.01", 0)), float(counts.get("+Inf", 0))
    return f"{100 * soon / all_:.1f} % within 10 ms" if all_ else "none refused"


# 13


async def delays(port: int, seconds: float) -> list[float]:
    """Return how long each token of many streams took from the neuron to here."""
    found: list[float] = []

    async def one() -> None:
        client = await Client.to(port)
        client.send("paced", stream=True, max_tokens=int(20 * seconds))
        await client.head()
        while piece := await client.chunk():
            now = monotonic()
            found.extend(now - float(at) for at in STAMP.findall(piece))
        client.leave()

    async with asyncio.TaskGroup() as clients:
        for number in range(OTHERS):
            clients.create_task(one())
            await asyncio.sleep(0.05 / OTHERS if number else 0)
    return found


async def slow_readers(gateway: Fleet, slow: int, seconds: float) -> list[Row]:
    """Have *slow* clients read a byte a second, and look at memory and at everybody else."""
    alone = await delays(gateway.port, seconds)
    clients, before = [], gateway.rss_kib
    async with asyncio.TaskGroup() as sipping:
        for _ in range(slow):
            client = await Client.to(gateway.port, receive_bytes=SIP_BYTES)
            client.send("flood", stream=True)
            clients.append((client, sipping.create_task(client.sip(SIP_S))))
        beside = await delays(gateway.port, seconds)
        each_kib = (gateway.rss_kib - before) / slow
        for client, task in clients:
            task.cancel()
            client.leave()
    quiet = f"{ms(alone, 0.99):.1f} ms without them"
    measured = f"{ms(beside, 0.99):.1f} ms (p50 {ms(beside, 0.5):.2f}; {quiet})"
    return [
        Row(13, f"{slow} readers at 1 B/s: memory of each", "256 KiB", f"{each_kib:.0f} KiB"),
        Row(13, f"chunks of {OTHERS} others, p99", "2 ms", measured),
    ]


# 17 and latency


@contextmanager
def started(endpoint: str) -> Iterator[tuple[Fleet, float]]:
    """Start a gateway; yields how long it took until it served, too."""
    began = perf_counter()
    with gateway_process(endpoint) as gateway:
        asyncio.run(answers(gateway.port, 1))
        yield gateway, perf_counter() - began


async def answers(port: int, number: int, *, stream: bool = False) -> list[float]:
    """Return how long it takes until the head of each of some answers is there."""
    client, found = await Client.to(port), []
    for _ in range(number):
        began = perf_counter()
        client.send("whole", stream=stream)
        answer = await client.head()
        if stream:
            await client.chunk()
        found.append(perf_counter() - began)
        if stream:
            while await client.chunk():
                pass
        else:
            await client.rest(answer)
    client.leave()
    return found


def latency() -> Iterator[Row]:
    """Start a gateway twice, and ask it one thing after the other."""
    with neuron() as endpoint:
        with started(endpoint):
            pass  # killed
        with started(endpoint) as (gateway, took_s):
            yield Row(17, "serves after kill -9 and a start", "2 s", f"{took_s:.2f} s")
            memory = f"{gateway.rss_kib / 1024:.0f} MiB"
            yield Row(0, "memory after one request", "60 MB", memory)
            for what, stream, target in (
                ("a whole answer", False, "0.15 ms"),
                ("a first token", True, ""),
            ):
                direct: list[float] = []
                through: list[float] = []
                for _ in range(ROUNDS):  # by turns
                    for found, port in ((direct, gateway.neuron_port), (through, gateway.port)):
                        found.append(ms(uvloop.run(answers(port, EACH, stream=stream)), 0.5))
                of = f"{min(through):.2f}, without it {min(direct):.2f}"
                added = f"{min(through) - min(direct):.2f} ms ({of})"
                name = f"added to {what}, p50 of the quietest of {ROUNDS} rounds"
                yield Row(0, name, target, added)


def measure(streams: int, seconds: float, slow: int) -> Iterator[Row]:
    """Measure everything, one after the other."""
    yield from latency()
    yield from saturation(streams, seconds / 3)
    queue = f"[queue]\nmax_depth = {DEPTH}\n"
    with fleet(queue, seats=SEATS, answer_s=ANSWER_S) as gateway:
        yield from uvloop.run(overload(gateway.port, seconds))
        yield Row(
            12, "refused, as the gateway counts it", "10 ms", refused_soon(gateway.metrics_port)
        )
    with fleet() as gateway:
        yield from uvloop.run(slow_readers(gateway, slow, seconds / 4))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the overload lasts")
    parser.add_argument("--slow", type=int, default=100)
    args = parser.parse_args()
    many_descriptors()
    before = machine()
    rows = list(measure(args.streams, args.seconds, args.slow))
    if args.json:
        print(json.dumps([attrs.asdict(row) for row in rows]))
        return
    print(f"before: {before}\nafter: {machine()}\n")
    print("| # | what | target | measured |\n| --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row.number or ''} | {row.what} | {row.target} | {row.measured} |")


if __name__ == "__main__":
    main()
