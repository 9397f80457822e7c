"""
What a gateway holds after it has served for long: its memory and its file descriptors.

A fake neuron, a gateway and this client run in processes of their own.  Requests come at a steady
rate, half of them streams, each over a connection of its own; one in ten leaves before its answer
is whole.  Prints the slope of the gateway's memory over the second half, its descriptors before,
under load and after, and what went wrong.

    python benchmarks/soak.py [--json] [--seconds S] [--rate N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from time import monotonic

import uvloop
from fleet import Client, Fleet, fleet, machine, many_descriptors
from health import cpu_s

LEAVE = (0, 11)  # of twenty: one whole answer, and one stream
ANSWER_S = 0.05
SETTLE_S = 2.0


async def one(port: int, number: int, ended: Counter[str]) -> None:
    """Be one client."""
    stream = bool(number % 2)
    try:
        client = await Client.to(port)
    except OSError:
        ended["not connected"] += 1
        return
    try:
        if number % 20 in LEAVE:
            client.send("whole", stream=stream)
            await (client.head() if stream else asyncio.sleep(ANSWER_S / 2))
            ended["left"] += 1
            return
        answer = await client.ask("whole", stream=stream)
        is_whole = answer.body.endswith(b"[DONE]\n\n") or not stream
        ended["ok" if answer.status == 200 and is_whole else f"{answer.status}"] += 1  # noqa: PLR2004
    except (OSError, EOFError, TimeoutError) as error:
        ended[type(error).__name__] += 1
    finally:
        client.leave()


async def soak(gateway: Fleet, seconds: float, rate: float) -> dict[str, object]:
    """Ask for *seconds*, *rate* times a second, and look at the gateway meanwhile."""
    ended: Counter[str] = Counter()
    samples: list[tuple[float, int]] = []
    most, cpu = 0, cpu_s(gateway.pid)
    before, began = gateway.descriptors, monotonic()
    async with asyncio.TaskGroup() as clients:
        number, look_at = 0, 0.0
        while (now := monotonic() - began) < seconds:
            while number < now * rate:
                clients.create_task(one(gateway.port, number, ended))
                number += 1
            if now >= look_at:
                samples.append((now, gateway.rss_kib))
                most, look_at = max(most, gateway.descriptors), now + seconds / 200
            await asyncio.sleep(1 / rate)
    await asyncio.sleep(SETTLE_S)
    half = [sample for sample in samples if sample[0] >= seconds / 2]
    return {
        "requests": number,
        "ended": dict(ended),
        "errors": number - ended["ok"] - ended["left"],
        "cpu_us_per_request": round(1e6 * (cpu_s(gateway.pid) - cpu) / number),
        "memory_kib": {"begin": samples[0][1], "half": half[0][1], "end": gateway.rss_kib},
        "slope_kib_per_min": round(60 * slope(half), 1),
        "descriptors": {"begin": before, "most": most, "end": gateway.descriptors},
    }


def slope(samples: list[tuple[float, int]]) -> float:
    """Return the slope of the line through *samples* that errs least, a second."""
    mean_x = sum(x for x, _ in samples) / len(samples)
    mean_y = sum(y for _, y in samples) / len(samples)
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread if spread else 0.0


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=200.0)
    args = parser.parse_args()
    many_descriptors()
    with fleet(answer_s=ANSWER_S) as gateway:
        found = uvloop.run(soak(gateway, args.seconds, args.rate))
    if args.json:
        print(json.dumps(found))
        return
    print(f"{args.rate:g} requests a second for {args.seconds:g} s; {machine()}\n")
    for name, value in found.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
