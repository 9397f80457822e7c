"""The contract of harnesses; a broken one raises `AssertionError` with a sentence."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Literal

from cortex.api import Harness
from cortex.chat.events import (
    ChatEvent,
    Finished,
    Started,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStarted,
)
from cortex.chat.request import ChatRequest, Message, Sampling, Text
from cortex.fleet.model import Checkpoint, ModelSpec, Progress
from cortex.fleet.node import Device, DeviceState
from cortex.testing.expecting import expect, until

DELTAS = (TextDelta, ThinkingDelta, ToolCallStarted, ToolCallDelta)


class FakeHost:
    """A `cortex.api.HarnessHost` with one device; use it inside a running event loop."""

    def __init__(self) -> None:
        self.devices: Sequence[Device] = (Device(index=0, kind="cpu"),)
        self.changes: list[tuple[object, ...]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def device_changed(self, index: int, state: DeviceState) -> None:
        self.changes.append((index, state))

    def model_changed(
        self,
        model_id: str,
        status: Literal["loaded", "recovering", "failed"],
        error: str | None = None,
    ) -> None:
        self.changes.append((model_id, status, error))


async def harness_contract(
    harness: Harness, spec: ModelSpec, checkpoint: Checkpoint | None = None
) -> None:
    """
    Hold a harness to what cortex relies on; it is closed afterwards.

    Args:
        harness: As its factory builds it, for instance with a `FakeHost`.
        spec: A model it can load; *checkpoint* are its weights, if it wants some.
        checkpoint: See *spec*.
    """
    seen: list[Progress] = []
    running = await harness.load(spec, checkpoint, 0, seen.append)
    expect(running.used_bytes >= 0, "used_bytes is negative")
    messages = (Message(role="user", parts=(Text("one two three four"),)),)

    def ask(**more: Any) -> ChatRequest:
        return ChatRequest(
            id="c", model=spec.id, messages=messages, sampling=Sampling(temperature=0, **more)
        )

    async def events(request: ChatRequest) -> list[ChatEvent]:
        return [event async for event in harness.generate(request)]

    for said in await asyncio.gather(events(ask(max_tokens=3)), events(ask(max_tokens=3))):
        expect(isinstance(said[0], Started), f"{said[0]} comes first; Started is due")
        expect(isinstance(said[-1], Finished), f"{said[-1]} comes last; Finished is due")
        expect(
            all(isinstance(e, DELTAS) and e != TextDelta("") for e in said[1:-1]),
            "between Started and Finished only deltas may come, and none empty",
        )
        if isinstance(said[-1], Finished):
            count = said[-1].usage.completion_tokens
            expect(count <= 3, f"{count} tokens came of at most 3")  # noqa: PLR2004 - asked above
    left = harness.generate(ask())
    await anext(left)
    await left.aclose()
    await until(lambda: harness.stats(spec.id).in_flight == 0)
    await harness.unload(spec.id)
    await harness.aclose()
