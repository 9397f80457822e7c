"""
What the gateway adds to a request: time, CPU, and how many it carries.

Starts a neuron that answers from memory, a gateway with keys, limits, ledger and metrics on, and a
client, each a process of its own, and asks the neuron first directly, then through the gateway.
CPU is the gateway's own, so that other work on the machine hardly moves it; times are not.

    python benchmarks/gateway.py [--json] [--seconds S]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import cast

import attrs
import uvloop

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from cortex.fleet.node import Device, DeviceInfo, Discovery, Health, NodeModel  # noqa: E402
from cortex.wire import encode  # noqa: E402

KEY = "sk-bench"
CONFIG = f"""
[gateway]
listen = "127.0.0.1:0"
metrics_listen = "127.0.0.1:0"
[[neurons]]
name = "n"
endpoint = "{{endpoint}}"
[auth]
require = true
[[auth.keys]]
name = "bench"
sha256 = "{sha256(KEY.encode()).hexdigest()}"
requests_per_minute = 100000000
tokens_per_minute = 100000000
"""
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":" word"}}]}\n\n'
ANSWER = (
    b'{"id":"x","object":"chat.completion","model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"hello"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":7,"completion_tokens":1,"total_tokens":8}}'
)
USAGE = b'{"prompt_tokens":7,"completion_tokens":1}'


@attrs.frozen(kw_only=True)
class Case:
    """
    One way to ask, and what is wanted of it.

    Attributes:
        connections: That ask, each one request after the other.
        prompt_bytes: Of a body.
        chunks: Of a streamed answer; 0 is a whole one.
        pause_s: Between chunks.
        targets: By the name of the figure.
    """

    name: str
    connections: int
    prompt_bytes: int = 100
    chunks: int = 0
    pause_s: float = 0.0
    targets: dict[str, float]


CASES = (
    Case(name="one at a time", connections=1, targets={"added_p50_ms": 0.15}),
    Case(
        name="32 connections",
        connections=32,
        targets={"per_s": 15_000, "p99_ms": 4.0, "cpu_us": 60.0},
    ),
    Case(
        name="235 KB bodies, 8 connections",
        connections=8,
        prompt_bytes=235_000,
        targets={"per_s": 3_000},
    ),
    Case(
        name="256 streams of 100 chunks/s",
        connections=256,
        chunks=200,
        pause_s=0.01,
        targets={"cpu_us_a_chunk": 30.0},
    ),
)


class Answering(asyncio.Protocol):
    """One connection of a neuron that has model ``m`` and answers from memory."""

    def __init__(self) -> None:
        self._got = b""
        self._need = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._got += data
        if len(self._got) < self._need:
            return
        head, end, body = self._got.partition(b"\r\n\r\n")
        if not end:
            return
        length = re.search(rb"(?i)content-length: (\d+)", head)
        self._need = len(head) + 4 + (int(length[1]) if length else 0)
        if len(self._got) >= self._need:
            self._got, self._need = b"", 0
            self._answer(head.split(b" ", 2)[1], head, body)

    def _answer(self, path: bytes, head: bytes, body: bytes) -> None:
        if (found := FACTS.get(path)) is not None:
            self._whole(found)
        elif chunks := re.search(rb'"chunks":(\d+),"pause_s":([\d.]+)', body):
            task = asyncio.ensure_future(self._stream(int(chunks[1]), float(chunks[2]), head))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._whole(ANSWER, b"x-cortex-usage: %b\r\n" % USAGE)

    def _whole(self, body: bytes, more: bytes = b"") -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n"
        self._transport.write(head % (more, len(body)) + body)

    async def _stream(self, chunks: int, pause_s: float, head: bytes) -> None:
        kind = b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
        self._transport.write(b"HTTP/1.1 200 OK\r\n%b\r\n" % kind)
        piece = b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK)
        for _ in range(chunks):
            await asyncio.sleep(pause_s)
            self._transport.write(piece)
        trailer = b"x-cortex-usage: %b\r\n" % USAGE if b"x-cortex-usage" in head else b""
        self._transport.write(b"0\r\n%b\r\n" % trailer)


FACTS = {
    b"/health": encode(
        Health(status="ok", devices=(Device(index=0, vram_total_mb=24_000, vram_free_mb=12_000),))
    ),
    b"/discovery": encode(
        Discovery(
            hostname="n",
            dialects=("openai-chat",),
            devices=(DeviceInfo(index=0, vram_total_mb=24_000),),
        )
    ),
    b"/models": encode((NodeModel(id="m", status="loaded", devices=(0,)),)),
}


class Asking(asyncio.Protocol):
    """One client connection: a request, its answer, the next, until it is told to stop."""

    def __init__(self, request: bytes, times: list[float], ended: asyncio.Future[None]) -> None:
        self._request, self._times, self._ended = request, times, ended
        self._need, self._tail, self._is_chunked = 0, b"", False
        self.stops = False
        self.wrong = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def _ask(self) -> None:
        self._need, self._tail = 0, b""
        self._began = perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._tail += data
        if not self._need:
            head, end, _ = self._tail.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 200"):
                self.wrong = head
                self.connection_lost(None)
                return
            length = re.search(rb"(?i)content-length: (\d+)", head)
            self._is_chunked = length is None
            self._need = len(head) + 4 + (int(length[1]) if length else 0)
        if self._is_chunked:
            self._tail = self._tail[-200:]
            if not (self._tail.endswith(b"\r\n\r\n") and b"\r\n0\r\n" in self._tail):
                return
        elif len(self._tail) < self._need:
            return
        self._times.append(perf_counter() - self._began)
        if self.stops:
            self._transport.close()
        else:
            self._ask()

    def connection_lost(self, _: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


async def ask(port: int, case: Case, seconds: float) -> list[float]:
    """Ask for *seconds*; return how long each answer took, in seconds."""
    loop = asyncio.get_running_loop()
    body: dict[str, object] = {
        "model": "m",
        "stream": bool(case.chunks),
        "messages": [{"role": "user", "content": "x" * case.prompt_bytes}],
    }
    if case.chunks:
        body |= {"bench": {"chunks": case.chunks, "pause_s": case.pause_s}}
    said = json.dumps(body, separators=(",", ":")).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(said)}\r\n\r\n"
    )
    times: list[float] = []
    ends = [loop.create_future() for _ in range(case.connections)]
    clients = [Asking(head.encode() + said, times, end) for end in ends]
    for client in clients:
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.sleep(seconds)
    for client in clients:
        client.stops = True
    async with asyncio.timeout(60):
        await asyncio.gather(*ends)
    for client in clients:
        if client.wrong:
            raise SystemExit(client.wrong.decode("latin-1"))
    return times


async def neuron() -> None:
    """Answer whoever asks, for ever."""
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0, backlog=4096)
    print(f"listens on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


@contextmanager
def program(folder: str, *command: str) -> Iterator[tuple[int, int]]:
    """Run a program while inside; yields its process id and the port it listens on."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": folder}
    with subprocess.Popen(  # noqa: S603 - what it starts is named here
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, env=env, cwd=folder
    ) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            lines = (re.search(r"listens on http://127.0.0.1:(\d+)", x) for x in process.stdout)
            if (found := next(filter(None, lines), None)) is None:
                raise SystemExit(f"{process.args!r} ended")
            yield process.pid, int(found[1])
        finally:
            process.kill()


def cpu_s(pid: int) -> float:
    """Return the seconds of CPU a process has had, all its threads together."""
    return sum(
        int(task.read_text("ascii").split()[0]) / 1e9
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat")
    )


def figures(case: Case, folder: str, port: int, pid: int, seconds: float) -> dict[str, float]:
    """Ask at *port* and return what there is to say of it; CPU is that of process *pid*."""
    ask_once = [sys.executable, __file__, f"--ask={port}", f"--case={CASES.index(case)}"]
    cpu, began = cpu_s(pid), perf_counter()
    done = subprocess.run(  # noqa: S603 - it is this file
        [*ask_once, f"--seconds={seconds}"], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    times, took_s = sorted(json.loads(done.stdout)), perf_counter() - began
    cpu_us = 1e6 * (cpu_s(pid) - cpu) / len(times)
    found = {
        "requests": len(times),
        "per_s": round(len(times) / seconds) if not case.chunks else round(len(times) / took_s),
        "p50_ms": round(1e3 * times[len(times) // 2], 3),
        "p99_ms": round(1e3 * times[int(0.99 * (len(times) - 1))], 3),
        "cpu_us": round(cpu_us, 1),
    }
    if case.chunks:
        found["cpu_us_a_chunk"] = round(cpu_us / case.chunks, 1)
    return found


def measure(case: Case, seconds: float) -> dict[str, dict[str, float]]:
    """Measure one case, the neuron alone and then through the gateway."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        node_pid, node = stack.enter_context(program(folder, __file__, "--neuron"))
        file = Path(folder) / "cortex.toml"
        (Path(folder) / "models.toml").touch()
        file.write_text(CONFIG.format(endpoint=f"http://127.0.0.1:{node}"))
        command = ("-m", "cortex", "serve", f"--config={file}", "--log-level=warning")
        pid, port = stack.enter_context(program(folder, *command))
        figures(case, folder, port, pid, min(seconds, 1.0))  # warm
        direct = figures(case, folder, node, node_pid, seconds)
        through = figures(case, folder, port, pid, seconds)
        through["added_p50_ms"] = round(through["p50_ms"] - direct["p50_ms"], 3)
        return {"direct": direct, "gateway": through}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--only", type=int, choices=range(len(CASES)), help="one of the cases")
    parser.add_argument("--neuron", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ask", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.neuron:
        uvloop.run(neuron())
        return
    if args.ask is not None:
        print(json.dumps(uvloop.run(ask(args.ask, CASES[args.case], args.seconds))))
        return
    cases = CASES if args.only is None else CASES[args.only : args.only + 1]
    rows = {case.name: measure(case, args.seconds) for case in cases}
    if args.json:
        print(json.dumps(rows))
        return
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, load {load:.1f} at the end")
    for case in cases:
        print(f"\n{case.name}")
        for who, row in rows[case.name].items():
            print(f"  {who:8}", "  ".join(f"{name} {value:g}" for name, value in row.items()))
        for name, wanted in case.targets.items():
            print(f"  target   {name} {wanted:g}, measured {rows[case.name]['gateway'][name]:g}")


if __name__ == "__main__":
    main()
