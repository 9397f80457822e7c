"""
What the benchmarks run: a fake neuron and a gateway in processes of their own, and their client.

Run as a program it is the neuron.  Its models: ``whole`` answers five words, ``--seats`` requests
at a time and in ``--answer-s``; ``paced`` says what time it is, every 50 ms; ``flood`` says as much
as is taken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import resource
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import Self

import attrs
import uvloop
from health import program, said

from cortex.chat.events import ChatEvent, Finished, Started, TextDelta, Usage
from cortex.chat.request import ChatRequest
from cortex.testing import FakeNeuron

MODELS = ("whole", "paced", "flood")
PACE_S = 0.05
WORDS = 5
FLOOD = "x" * (16 << 10)
STAMP = re.compile(rb'"content":"([\d.]+) "')
IDLE_S = 60.0


class Neuron(FakeNeuron):
    """Answers as the model that is asked for does."""

    async def _events(self, chat: ChatRequest) -> AsyncIterator[ChatEvent]:
        if chat.model == "whole":
            async for event in super()._events(chat):
                yield event
            return
        yield Started(prompt_tokens=1)
        while chat.model == "flood":
            yield TextDelta(FLOOD)
        for _ in range(chat.sampling.max_tokens or 1):
            await asyncio.sleep(PACE_S)
            yield TextDelta(f"{monotonic():.6f} ")
        yield Finished(reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=1))

    async def forget(self) -> None:
        """Keep nothing of what was asked."""
        while True:
            await asyncio.sleep(1)
            self.bodies.clear()
            self.headers.clear()


async def neuron(seats: int, answer_s: float) -> None:
    """Be the neuron."""
    node = Neuron(MODELS)
    node.answer, node.token_s, node.max_in_flight = "word " * WORDS, answer_s / WORDS, seats
    async with node:
        print(node.endpoint, flush=True)
        await node.forget()


@attrs.frozen(kw_only=True)
class Fleet:
    """A gateway that runs, and its neuron."""

    port: int
    neuron_port: int
    pid: int
    metrics_port: int

    @property
    def rss_kib(self) -> int:
        """The gateway's memory."""
        status = Path(f"/proc/{self.pid}/status").read_text("ascii")
        return int(status.partition("VmRSS:")[2].split()[0])

    @property
    def descriptors(self) -> int:
        """How many file descriptors the gateway has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


@contextmanager
def neuron_process(seats: int = 0, answer_s: float = 0.0) -> Iterator[str]:
    """Run the neuron while inside; yields its endpoint."""
    with program(__file__, f"--seats={seats}", f"--answer-s={answer_s}") as process:
        yield said(process, r"http://\S+")


@contextmanager
def gateway_process(endpoint: str, more: str = "") -> Iterator[Fleet]:
    """Run a gateway in front of *endpoint*, with *more* in its configuration."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        config = Path(folder, "bench.toml")
        Path(folder, "models.toml").touch()
        config.write_text(f'{more}\n[[neurons]]\nname = "n"\nendpoint = "{endpoint}"\n', "utf-8")
        places = ["--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0"]
        command = ["-m", "cortex", "serve", f"--config={config}", "--log-level=error", *places]
        process = stack.enter_context(program(*command, folder=folder))
        port = int(said(process, r"listens on http://127.0.0.1:(\d+)"))
        metrics_port = int(said(process, r"metrics on http://127.0.0.1:(\d+)"))
        yield Fleet(
            port=port,
            neuron_port=int(endpoint.rpartition(":")[2]),
            pid=process.pid,
            metrics_port=metrics_port,
        )


@contextmanager
def fleet(more: str = "", *, seats: int = 0, answer_s: float = 0.0) -> Iterator[Fleet]:
    """Run both."""
    with neuron_process(seats, answer_s) as endpoint, gateway_process(endpoint, more) as both:
        yield both


@attrs.frozen
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One connection, and one request on it at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, port: int, receive_bytes: int = 0) -> Self:
        """Connect; with *receive_bytes* the system takes no more for it than about that."""
        sock = socket.socket()
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(*await asyncio.open_connection(sock=sock, limit=receive_bytes or 1 << 16))

    def send(self, model: str, **more: object) -> None:
        """Send a request."""
        asked = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
        body = json.dumps(asked).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    async def head(self) -> Answer:
        """Return an answer without its body."""
        async with asyncio.timeout(IDLE_S):
            raw = await self._reader.readuntil(b"\r\n\r\n")
        first, *rest = raw.decode("latin-1").strip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in rest)
        return Answer(int(first.split()[1]), headers, b"")

    async def chunk(self) -> bytes:
        """Return a chunk of an answer in chunks; empty at its end."""
        async with asyncio.timeout(IDLE_S):
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            return (await self._reader.readexactly(size + 2))[:-2]

    async def rest(self, answer: Answer) -> Answer:
        """Return an answer of which the head was read, with its body."""
        if (length := answer.headers.get("content-length")) is not None:
            async with asyncio.timeout(IDLE_S):
                return attrs.evolve(answer, body=await self._reader.readexactly(int(length)))
        pieces = []
        while piece := await self.chunk():
            pieces.append(piece)
        return attrs.evolve(answer, body=b"".join(pieces))

    async def ask(self, model: str, **more: object) -> Answer:
        """Return a whole answer, a stream's too."""
        self.send(model, **more)
        return await self.rest(await self.head())

    async def sip(self, pause_s: float) -> None:
        """Read a byte at a time, for ever."""
        while await self._reader.read(1):  # noqa: ASYNC110 - a pause is what is wanted
            await asyncio.sleep(pause_s)

    def leave(self) -> None:
        """Close the connection, whatever is under way."""
        self._writer.transport.abort()


def machine() -> str:
    """Return on what this runs, and how busy it is."""
    load = "/".join(f"{load:.1f}" for load in os.getloadavg())
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, load average {load}"


def many_descriptors() -> None:
    """Have as many as the system lets us."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """Be the neuron."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seats", type=int, default=0)
    parser.add_argument("--answer-s", type=float, default=0.0)
    args = parser.parse_args()
    many_descriptors()
    uvloop.run(neuron(args.seats, args.answer_s))


if __name__ == "__main__":
    main()
