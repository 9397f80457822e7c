"""
How soon ``/healthz`` and ``/metrics`` answer while the gateway's event loop is busy.

Starts a fake neuron, a gateway and a client that holds many streams open, each in a process of its
own, and asks the metrics port over new connections meanwhile; then the same of a process whose main
thread never rests.  Prints milliseconds, and how busy the core of who was asked was.

    python benchmarks/health.py [--json] [--streams N] [--seconds S] [--token-s S]
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter, sleep

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from cortex.config.schema import Address  # noqa: E402 - they are found by what stands above
from cortex.gateway.metrics import GatewayMetrics  # noqa: E402
from cortex.gateway.metrics_server import MetricsServer  # noqa: E402

BODY = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}'
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY)
METRICS = r"metrics on http://127.0.0.1:(\d+)"
TARGET_MS = 50.0
PAUSE_S = 0.02


async def load(port: int, streams: int) -> None:
    """Hold *streams* streams open and read what comes."""

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + BODY)
        await reader.readuntil(b"\r\n\r\n")
        opened.release()
        while await reader.read(1 << 16):
            pass

    opened = asyncio.Semaphore(0)
    async with asyncio.TaskGroup() as tasks:
        for number in range(streams):
            tasks.create_task(one())
            if number % 50 == 0:
                await asyncio.sleep(0.05)
        for _ in range(streams):
            await opened.acquire()
        print("open", flush=True)


def spin() -> None:
    """Serve metrics from a thread, and never rest beside it."""
    server = MetricsServer(GatewayMetrics().registry, Address("127.0.0.1", 0))
    print(f"metrics on http://{server.address}/metrics", flush=True)
    while True:
        pass


@contextmanager
def program(*command: str, folder: str = ".") -> Iterator[subprocess.Popen[str]]:
    """Run a program while inside."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": folder}
    with subprocess.Popen(  # noqa: S603 - what it starts is named here
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=env,
        cwd=folder,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str], pattern: str) -> str:
    """Return what *pattern* finds in what a program says."""
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    for line in process.stdout:
        if found := re.search(pattern, line):
            return found[1] if found.groups() else found[0]
    raise SystemExit(f"{process.args!r} ended")


def cpu_s(pid: int) -> float:
    """Return the seconds of CPU a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(port: int, path: str) -> float:
    """Return the milliseconds an answer takes over a new connection."""
    began = perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    connection.close()
    if response.status != http.HTTPStatus.OK:
        raise SystemExit(f"{path} answers {response.status}")
    return 1e3 * (perf_counter() - began)


def measure(port: int, pid: int, seconds: float) -> dict[str, object]:
    """Ask for *seconds*, one after the other."""
    found: dict[str, list[float]] = {"/healthz": [], "/metrics": []}
    began, cpu = perf_counter(), cpu_s(pid)
    while perf_counter() - began < seconds:
        for path, times in found.items():
            times.append(ask(port, path))
            sleep(PAUSE_S)
    busy = (cpu_s(pid) - cpu) / (perf_counter() - began)
    return {"busy": round(busy, 2), **{path: spread(times) for path, times in found.items()}}


def spread(times: list[float]) -> dict[str, float]:
    """Return what there is to say of some times."""
    ranked = sorted(times)
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    last = len(ranked) - 1
    return {"n": len(ranked), **{name: round(ranked[int(q * last)], 1) for name, q in at.items()}}


def run(streams: int, seconds: float, token_s: float) -> dict[str, object]:
    """Measure without streams, then with *streams*."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        answer = ["--loaded=m", "--tokens=20000", f"--token-s={token_s}"]
        node = stack.enter_context(program("-m", "cortex.testing", *answer))
        endpoint = said(node, r"http://\S+")
        serve = ["--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0", f"--neuron=n={endpoint}"]
        gateway = stack.enter_context(program("-m", "cortex", "serve", *serve, folder=folder))
        port = int(said(gateway, r"listens on http://127.0.0.1:(\d+)"))
        metrics = int(said(gateway, METRICS))
        rows: dict[str, object] = {"idle": measure(metrics, gateway.pid, seconds / 4)}
        client = stack.enter_context(program(__file__, f"--load={port}", f"--streams={streams}"))
        said(client, "open")
        rows[f"{streams} streams"] = measure(metrics, gateway.pid, seconds)
    with program(__file__, "--spin") as busy:
        port = int(said(busy, METRICS))
        return {**rows, "never rests": measure(port, busy.pid, seconds)}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--token-s", type=float, default=0.1)
    parser.add_argument("--spin", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--load", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if args.spin:
        spin()
    elif args.load is not None:
        asyncio.run(load(args.load, args.streams))
    else:
        rows = run(args.streams, args.seconds, args.token_s)
        if args.json:
            print(json.dumps(rows))
            return
        system = f"{os.cpu_count()} cores, Python {platform.python_version()}"
        print(f"ms until an answer, target p99 under {TARGET_MS:g}; {system}\n")
        for name, row in rows.items():
            print(f"{name}: {row}")


if __name__ == "__main__":
    main()
