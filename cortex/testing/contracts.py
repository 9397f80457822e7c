"""Contracts to hold a plugin to; a broken one raises `AssertionError` with a sentence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from time import monotonic
from typing import Any, Literal, cast

from cortex.api import ChatDialect, Harness, ModelsDialect
from cortex.chat.events import ChatEvent, Failed, Finished, Started, TextDelta, Usage
from cortex.chat.request import ChatRequest, Message, Sampling, Text
from cortex.errors import InvalidRequest, ModelNotFound
from cortex.fleet.model import Checkpoint, ModelCard, ModelSpec, Progress
from cortex.fleet.node import Device, DeviceState

STREAMS = ("text/event-stream", "application/x-ndjson")


async def until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    """Wait for *condition*; `AssertionError` if it does not come true in time."""
    deadline = monotonic() + timeout_s
    while not condition():
        expect(monotonic() < deadline, f"nothing came of it in {timeout_s:g} s")
        await asyncio.sleep(0.005)


def expect(holds: object, sentence: str) -> None:
    """Raise `AssertionError` with *sentence* unless *holds*."""
    if not holds:
        raise AssertionError(sentence)


def dialect_contract(dialect: ChatDialect, request: bytes, streamed: bytes) -> None:
    """
    Hold a dialect to what cortex relies on.

    Args:
        dialect: As its factory builds it.
        request: The body of a request it takes, not streaming.
        streamed: The same, streaming.
    """
    operations = [endpoint.operation for endpoint in dialect.endpoints]
    expect("chat" in operations, "no endpoint has the operation 'chat'")
    for nonsense in (b"", b"{", b"[]", b'{"model": 1}', b"[" * 100_000, b"\xff"):
        try:
            dialect.parse_request(nonsense, "id")
        except InvalidRequest:
            continue
        raise AssertionError(f"parse_request takes {nonsense[:20]!r}; InvalidRequest is due")
    usage = Usage(prompt_tokens=3, completion_tokens=2)
    events = Started(prompt_tokens=3), TextDelta("grün "), TextDelta("\n\ndata: x")
    finished = Finished(reason="stop", usage=usage)
    for body, is_stream in ((request, False), (streamed, True)):
        chat = dialect.parse_request(body, "id-1")
        expect(chat.stream is is_stream, f"stream is {chat.stream}, {is_stream} was asked for")
        expect(chat.id == "id-1", "the request has another id than parse_request was given")
        encoder = dialect.encoder(chat, 1)
        kinds = STREAMS if is_stream else ("application/json",)
        expect(encoder.content_type in kinds, f"content_type is none of {', '.join(kinds)}")
        pieces = [encoder.feed(event) for event in events]
        expect(is_stream or not any(pieces), "a whole body comes with its last event, at once")
        expect(encoder.feed(finished), "nothing is sent at the end")
    error = ModelNotFound("no model is called 'x'")
    status, body = dialect.render_error(error)
    expect(status == error.status, f"{error.status} is rendered as {status}")
    expect(b"no model is called" in body, "the message of an error is not rendered")
    last = dialect.encoder(dialect.parse_request(streamed, "id-1"), 1).feed(Failed(error))
    expect(b"no model is called" in last, "the event of a failure lacks its message")
    expect(b"no model is called" in dialect.render_stream_error(error), "a broken stream says why")
    if "list_models" in operations:
        models = cast("ModelsDialect", dialect)
        card = ModelCard(id="org/model", context=512)
        for rendered in (models.render_models([card], 1, {}), models.render_model(card, 1)):
            expect(b"org/model" in rendered, "a model's row lacks its id")
        if "list_loaded" in operations:
            loaded = models.render_loaded([card], 1)
            expect(b"org/model" in loaded, "a loaded model's row lacks its id")


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
            all(isinstance(e, TextDelta) and e.text for e in said[1:-1]),
            "between Started and Finished only TextDelta may come, and none empty",
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
