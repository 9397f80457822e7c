"""A gateway of our own over real sockets, and a fleet for it to tell of."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import attrs
import msgspec
import pytest

from cortex.fleet.node import (
    Activation,
    Device,
    Discovery,
    FailedActivation,
    Fleet,
    FleetNode,
    Health,
    Limit,
    LoadJob,
    ModelHealth,
    NodeModel,
    Servable,
)


@attrs.frozen
class Call:
    """A request the fake gateway got."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict | None
    query: dict[str, str]


Answer = tuple[int, dict[str, str], Iterable[bytes]]


def sse(event: object) -> bytes:
    data = event if isinstance(event, str) else json.dumps(event)
    return f"data: {data}\n\n".encode()


class FakeGateway:
    """
    Answers what a test told it to, over HTTP/1.1.

    Handlers by (method, path) return a status, headers and the pieces of a body; `events` makes a
    stream that ends as abruptly as its list does.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.handlers: dict[tuple[str, str], Callable[[Call], Answer]] = {}
        self.ahead_s = 0.0  # of its clock
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def on(self, method: str, path: str, handler: Callable[[Call], Answer]) -> None:
        self.handlers[method, path] = handler

    def json(self, method: str, path: str, body: object, status: int = 200) -> None:
        encoded = msgspec.json.encode(body)
        self.on(method, path, lambda _: (status, {"content-type": "application/json"}, [encoded]))

    def error(self, method: str, path: str, status: int, code: str, message: str) -> None:
        self.json(method, path, {"error": {"message": message, "code": code}}, status)

    def events(self, path: str, events: list[object]) -> None:
        body = [b": hello\n\n", *(sse(event) for event in events)]
        self.on("POST", path, lambda _: (200, {"content-type": "text/event-stream"}, body))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(None)

            def do_DELETE(self) -> None:
                self.answer(None)

            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                self.answer(json.loads(self.rfile.read(length)))

            def answer(self, body: dict | None) -> None:
                path, query = urlsplit(self.path).path, dict(parse_qsl(urlsplit(self.path).query))
                headers = {name.lower(): value for name, value in self.headers.items()}
                call = Call(self.command, path, headers, body, query)
                gateway.calls.append(call)
                handler = gateway.handlers.get((self.command, path))
                status, sent, content = handler(call) if handler else (404, {}, [b"not here"])
                self.send_response(status)
                for name, value in sent.items():
                    self.send_header(name, value)
                self.send_header("connection", "close")
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # the client may leave early
                    for piece in content:
                        self.wfile.write(piece)

            def date_time_string(self, timestamp: float | None = None) -> str:
                return super().date_time_string((timestamp or time.time()) + gateway.ahead_s)

            def log_message(self, *_: object) -> None: ...

        return Handler


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path) -> None:
    """Hide the developer's own settings, plugins, proxy and terminal width."""
    for name in ("CORTEX_KEY", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing may go through it
    monkeypatch.setenv("CORTEX_PLUGINS", "")
    monkeypatch.setenv("CORTEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def gateway(monkeypatch) -> Iterator[FakeGateway]:
    fake = FakeGateway()
    monkeypatch.setenv("CORTEX_URL", fake.url)
    yield fake
    fake.close()


@pytest.fixture
def nowhere(monkeypatch) -> str:
    """Return an address where nobody listens, which is what CORTEX_URL says."""
    fake = FakeGateway()
    fake.close()
    monkeypatch.setenv("CORTEX_URL", fake.url)
    return fake.url


REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return what runs ``python -m cortex`` as a program of its own."""

    def run(*args: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cortex", *args],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **env},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=25,
        )

    return run


class Terminal:
    """A command with a terminal of its own, and somebody who reads and types there."""

    def __init__(self, args: tuple[str, ...], columns: int) -> None:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (40, columns))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cortex", *args],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self._raw = b""
        self._seen = 0

    @property
    def text(self) -> str:
        """All that was on the screen, without moves, modes and colours."""
        text = re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|[=>])", "", self._raw.decode(errors="replace"))
        return text.replace("\r\n", "\n")

    def see(self, wanted: str) -> str:
        """Read on until *wanted* shows up; return what came before it since the last time."""
        while (at := self.text.find(wanted, self._seen)) < 0:
            assert self._read(), f"{wanted!r} never came, but: {self.text[self._seen :]}"
        before = self.text[self._seen : at]
        self._seen = at + len(wanted)
        return before

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def leave(self) -> int:
        """Wait for the end; return the exit status."""
        while self._read():
            pass
        return self.process.wait(10)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def _read(self) -> bool:
        try:
            raw = os.read(self._ours, 65536)
        except OSError:  # Linux says EIO once the other side is closed
            return False
        self._raw += raw
        return bool(raw)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*args: str, columns: int = 100) -> Terminal:
        opened.append(Terminal(args, columns))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


@pytest.fixture
def fleet() -> Fleet:
    """Return two nodes that work, one that does not, a load under way, and some trouble."""
    gpu = Device(
        index=0,
        name="NVIDIA GeForce RTX 4090",
        vram_total_mb=24564,
        vram_used_mb=18637,
        utilization_pct=97.0,
        temp_c=71.0,
    )
    beast = FleetNode(
        name="beast",
        endpoint="http://beast.internal:13131",
        healthy=True,
        health=Health(
            status="ok",
            uptime_secs=273_600,
            version="0.1.0",
            devices=(gpu, attrs.evolve(gpu, index=1, vram_used_mb=420, temp_c=38.0)),
            models=(
                ModelHealth(
                    id="Qwen/Qwen3-8B",
                    state="loaded",
                    in_flight=3,
                    queue_depth=2,
                    tok_s_decode=87,
                    kv_used_pct=41.6,
                    prefix_hit_pct=0.0,
                    body="modules: its logits are off by 3.0e-03",
                ),
            ),
        ),
        models=(
            NodeModel(
                id="Qwen/Qwen3-8B",
                status="loaded",
                devices=(0,),
                vram_used_mb=18022,
                limit=Limit(context=32768, output=32768),
            ),
            NodeModel(
                id="Qwen/Qwen3-Coder-30B-A3B-Instruct",
                status="loading",
                progress=0.43,
                stage="fetching",
                eta_s=80.0,
            ),
        ),
    )
    return Fleet(
        version="0.1.0",
        uptime_s=3725.0,
        nodes=(beast, _benjy(), _gone()),
        loads=(
            LoadJob(
                model="Qwen/Qwen3-Coder-30B-A3B-Instruct", node="beast", stage="loading", waiting=4
            ),
        ),
        catalogue=("Qwen/Qwen3-8B", "Qwen/Qwen3-1.7B", "google/gemma-3-27b-it"),
        aliases={"helexa/small": "Qwen/Qwen3-1.7B"},
    )


def _benjy() -> FleetNode:
    card = Device(
        index=0, name="NVIDIA RTX A4000", vram_total_mb=16376, vram_used_mb=3712, state="recovering"
    )
    return FleetNode(
        name="benjy",
        endpoint="http://benjy.internal:13131",
        healthy=True,
        health=Health(
            status="degraded",
            uptime_secs=305,
            version="0.1.0",
            devices=(card, Device(index=1, kind="cpu", name="AMD EPYC", vram_total_mb=257_000)),
            activation=Activation(
                state="pre_warming",
                pending=("c",),
                in_progress="b",
                failed=(FailedActivation(model_id="org/typo", error="no such repository"),),
            ),
            models=(
                ModelHealth(id="nomic/embed", state="loaded", body="plain"),
                ModelHealth(id="m", state="loaded", body="plain: its attention has sinks"),
            ),
        ),
        discovery=Discovery(hostname="benjy"),
        models=(
            NodeModel(
                id="nomic/embed",
                status="loaded",
                devices=(0,),
                servable=Servable(ok=False, reason="its worker is restarting"),
            ),
        ),
    )


def _gone() -> FleetNode:
    return FleetNode(
        name="attic",
        endpoint="http://attic.internal:13131",
        healthy=False,
        error="connection refused",
    )
