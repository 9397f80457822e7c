"""The contract of harnesses; a broken one raises `AssertionError` with a sentence."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Literal

import attrs

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
from cortex.chat.request import ChatRequest, Message, Sampling, Text, Tool
from cortex.fleet.model import Checkpoint, ModelSpec, Progress
from cortex.fleet.node import Device, DeviceState
from cortex.testing.expecting import expect, until


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


def expect_answer(events: Sequence[ChatEvent]) -> None:
    """Raise `AssertionError` unless *events* are an answer that went well."""
    expect(isinstance(events[0], Started), f"{events[0]} comes first; Started is due")
    expect(isinstance(events[-1], Finished), f"{events[-1]} comes last; Finished is due")
    calls: list[str] = []
    for event in events[1:-1]:
        match event:
            case TextDelta(text, logprobs):
                expect(text or logprobs, "a TextDelta has neither text nor tokens")
            case ThinkingDelta(text):
                expect(text, "a ThinkingDelta is empty")
            case ToolCallStarted(index=index, id=call_id, name=name):
                expect(index == len(calls), f"call {index} comes after {len(calls)} others")
                expect(call_id and name, "a call has no id or no name")
                expect(call_id not in calls, f"two calls have the id {call_id!r}")
                calls.append(call_id)
            case ToolCallDelta(index=index, arguments=arguments):
                expect(index == len(calls) - 1, "arguments are not of the call before them")
                expect(arguments, "a ToolCallDelta is empty")
            case _:
                expect(False, f"{event} comes in the middle of an answer")
    if isinstance(events[-1], Finished):
        reason, due = events[-1].reason, "tool_calls" if calls else "stop"
        expect(
            reason in (due, "length", "content_filter"), f"it ended with {reason!r}, not {due!r}"
        )


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

    counted = await harness.count(ask())
    count_cold = await harness.counter(spec, checkpoint)
    expect(await count_cold(ask()) == counted, "count and counter do not say the same")
    for said in await asyncio.gather(events(ask(max_tokens=3)), events(ask(max_tokens=3))):
        expect_answer(said)
        match said:
            case [Started(prompt_tokens=tokens), *_, Finished(usage=usage)]:
                expect(tokens == counted, f"count says {counted} tokens, Started {tokens}")
                count = usage.completion_tokens
                expect(count <= 3, f"{count} tokens came of at most 3")  # noqa: PLR2004
    if "tools" in running.capabilities:
        tools = (Tool(name="go", description="Goes."), Tool(name="stop", description="Stops."))
        with_tools = attrs.evolve(ask(max_tokens=30), tools=tools)
        expect(await harness.count(with_tools) > counted, "tools are not in the prompt")
        expect_answer(await events(with_tools))
    left = harness.generate(ask())
    await anext(left)
    await left.aclose()
    await until(lambda: harness.stats(spec.id).in_flight == 0)
    await harness.unload(spec.id)
    await harness.aclose()
