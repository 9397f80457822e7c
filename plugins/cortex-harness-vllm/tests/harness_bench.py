"""Harnesses of servers that are fakes, and what these were asked."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs

import cortex_harness_vllm as plugin
from cortex.chat.events import ChatEvent
from cortex.chat.request import ChatRequest, Message, Sampling, Text
from cortex.fleet.model import Checkpoint, ModelSpec, Progress
from cortex.fleet.node import Device
from cortex.testing import FakeHost
from cortex_harness_vllm.harness import ServerHarness
from cortex_harness_vllm.options import (
    LlamaServerOptions,
    ModelOptions,
    ServerOptions,
    SglangOptions,
    VllmOptions,
)

HERE = Path(__file__).parent
MODEL = "org/model"
GIB = 1 << 30
WEIGHTS = Checkpoint(path=Path("/weights"), format="safetensors", size_bytes=4 * GIB)
KINDS = {"vllm": VllmOptions, "sglang": SglangOptions, "llama-server": LlamaServerOptions}
FAKE_COMMAND = (sys.executable, "-S", str(HERE / "fake_server.py"))
QUICK = {"start_s": 20.0, "watchdog_s": 20.0, "stop_s": 2.0}


def gpus(count: int = 2) -> tuple[Device, ...]:
    return tuple(
        Device(index=index, vram_total_mb=80_000, vram_free_mb=60_000) for index in range(count)
    )


@attrs.define
class Bench:
    """A harness of fakes in a folder."""

    harness: ServerHarness
    host: FakeHost
    record: Path

    @property
    def records(self) -> list[dict[str, Any]]:
        if not self.record.exists():
            return []
        return [json.loads(line) for line in self.record.read_text().splitlines()]

    @property
    def starts(self) -> list[dict[str, Any]]:
        return [row for row in self.records if "argv" in row]

    @property
    def pids(self) -> list[int]:
        return [pid for row in self.starts for pid in row["pids"]]

    def asked(self, path: str) -> list[dict[str, Any]]:
        return [row["body"] for row in self.records if row.get("path") == path]

    async def load(self, spec: ModelSpec | None = None, **more: Any):
        seen: list[Progress] = []
        spec = spec or ModelSpec(id=MODEL, **more)
        return await self.harness.load(spec, WEIGHTS, 1, seen.append), seen

    async def say(self, text: str = "one two", **more: Any) -> list[ChatEvent]:
        return [event async for event in self.harness.generate(request(text, **more))]


def request(text: str = "one two", sampling: Sampling | None = None, **more: Any) -> ChatRequest:
    messages = () if "prompts" in more else (Message(role="user", parts=(Text(text),)),)
    given = {"messages": messages, "sampling": sampling or Sampling(), **more}
    return ChatRequest(id="r", model=MODEL, **given)


@asynccontextmanager
async def bench(
    folder: Path,
    kind: str = "vllm",
    *,
    fake: Mapping[str, object] | None = None,
    args: tuple[str, ...] = (),
    devices: tuple[Device, ...] | None = None,
    **more: Any,
) -> AsyncIterator[Bench]:
    """Have a harness whose servers do as *fake* says, and end with it."""
    record = folder / "record"
    env = {"FAKE": json.dumps({"record": str(record), **(fake or {})})}
    options: ServerOptions = KINDS[kind](
        models={MODEL: ModelOptions(args=args, env=env)},
        **{"command": FAKE_COMMAND, **QUICK, **more},
    )
    host = FakeHost()
    host.devices = devices or gpus()
    make = getattr(plugin, f"make_{kind.replace('-', '_')}")
    made = Bench(make(options, host), host, record)
    try:
        yield made
    finally:
        await made.harness.aclose()
