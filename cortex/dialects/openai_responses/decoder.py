"""A server's streamed response, read as events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from cortex.chat.events import (
    ChatEvent,
    Failed,
    Finished,
    FinishReason,
    Started,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from cortex.chat.request import ChatRequest
from cortex.dialects.openai_chat.chunk import WireLogprob, read_logprob
from cortex.dialects.openai_errors import read_error_object
from cortex.dialects.openai_responses.tools import joined
from cortex.dialects.sse import SseReader
from cortex.errors import UpstreamDied, UpstreamFailed
from cortex.wire import encode

IN_STREAM = 200


class WireDetails(msgspec.Struct):
    """Both ``input_tokens_details`` and ``output_tokens_details``."""

    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class WireUsage(msgspec.Struct):
    """``usage``."""

    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: WireDetails | None = None
    output_tokens_details: WireDetails | None = None


class WireReason(msgspec.Struct):
    """``incomplete_details``."""

    reason: str | None = None


class WireResponse(msgspec.Struct):
    """What is read of a response object."""

    usage: WireUsage | None = None
    error: object = None
    incomplete_details: WireReason | None = None


class WireOutput(msgspec.Struct):
    """What is read of an item of an answer."""

    type: str
    call_id: str = ""
    name: str = ""
    namespace: str | None = None


class WireEvent(msgspec.Struct):
    """An event, of whichever type."""

    type: str
    output_index: int | None = None
    delta: str = ""
    logprobs: list[WireLogprob] | None = None
    item: WireOutput | None = None
    text: str = ""
    arguments: str = ""
    input: str = ""
    response: WireResponse | None = None
    error: object = None
    message: str | None = None
    code: object = None


class WireKind(msgspec.Struct):
    """What tells whether an event is read at all."""

    type: str = ""


READ = (
    *("response.created", "response.output_item.added", "error"),
    *("response.completed", "response.incomplete", "response.failed"),
    *("response.output_text.delta", "response.output_text.done", "response.refusal.delta"),
    *("response.reasoning_text.delta", "response.reasoning_summary_text.delta"),
    *("response.function_call_arguments.delta", "response.function_call_arguments.done"),
    "response.custom_tool_call_input.done",
)
decode_kind = msgspec.json.Decoder(WireKind).decode
decode_event = msgspec.json.Decoder(WireEvent).decode


class StreamDecoder:
    """
    See `cortex.api.ReplyDecoder`.

    Takes what servers are known to do: no beginning, what an item says only at its end.  Of a
    request that wants one call at a time it is the first call.
    """

    def __init__(self, request: ChatRequest) -> None:
        self._has_logprobs = request.sampling.logprobs is not None
        self._is_parallel = request.tool_choice.parallel
        self._reader = SseReader()
        self._calls = 0
        self._places: dict[int | None, int | None] = {}  # output to call; None is left out
        self._said: set[int | None] = set()  # outputs that came in pieces
        self._thought = False
        self._is_started = self._is_over = False

    def feed(self, data: bytes) -> Sequence[tuple[int, ChatEvent]]:
        return [(0, event) for _, said in self._reader.feed(data) for event in self._read(said)]

    def end(self) -> Sequence[tuple[int, ChatEvent]]:
        if self._is_over:
            return []
        self._is_over = True
        return [(0, Failed(UpstreamDied("the server's answer broke off")))]

    def _read(self, data: bytes) -> Iterator[ChatEvent]:
        if self._is_over or data == b"[DONE]":
            return
        try:
            if decode_kind(data).type not in READ:
                return
            event = decode_event(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            yield self._fail("the server sent what is no event of a response")
            return
        if not self._is_started and event.type not in ("response.failed", "error"):
            self._is_started = True
            yield Started(prompt_tokens=0)
        yield from self._events(event)

    def _events(self, event: WireEvent) -> Iterator[ChatEvent]:
        match event.type:
            case "response.output_text.delta":
                logprobs = event.logprobs if self._has_logprobs else None
                self._said.add(event.output_index)
                if event.delta or logprobs:
                    yield TextDelta(event.delta, tuple(map(read_logprob, logprobs or ())))
            case "response.refusal.delta" if event.delta:
                yield TextDelta(event.delta)
            case "response.reasoning_text.delta" if event.delta:
                self._thought = True
                yield ThinkingDelta(event.delta)
            case "response.reasoning_summary_text.delta" if event.delta and not self._thought:
                yield ThinkingDelta(event.delta)
            case "response.function_call_arguments.delta" if event.delta:
                self._said.add(event.output_index)
                yield from self._grow(event, event.delta)
            case "response.custom_tool_call_input.done":
                yield from self._grow(event, encode({"input": event.input}).decode())
            case _:
                yield from self._steps(event)

    def _steps(self, event: WireEvent) -> Iterator[ChatEvent]:
        """Read what is no piece of anything."""
        match event.type:
            case "response.output_item.added" if event.item is not None:
                yield from self._begin(event.item, event.output_index)
            case "response.output_text.done" if event.output_index not in self._said:
                if event.text:
                    yield TextDelta(event.text)
            case "response.function_call_arguments.done" if event.output_index not in self._said:
                if event.arguments.strip() not in ("", "{}"):
                    yield from self._grow(event, event.arguments)
            case "response.completed" | "response.incomplete" | "response.failed" | "error":
                self._is_over = True
                yield self._last(event)

    def _begin(self, item: WireOutput, place: int | None) -> Iterator[ChatEvent]:
        if item.type not in ("function_call", "custom_tool_call"):
            return
        if self._calls and not self._is_parallel:
            self._places[place] = None
            return
        self._places[place] = self._calls
        name = joined(item.namespace, item.name)
        yield ToolCallStarted(index=self._calls, id=item.call_id, name=name)
        self._calls += 1

    def _grow(self, event: WireEvent, arguments: str) -> Iterator[ChatEvent]:
        """Read a piece of a call, which has to be the last that began."""
        last = self._calls - 1
        index = self._places.get(event.output_index, last)
        if index == last:
            yield ToolCallDelta(index=last, arguments=arguments)
        elif index is not None:
            yield self._fail("the server mixes up what its calls say")

    def _fail(self, message: str) -> Failed:
        self._is_over = True
        return Failed(UpstreamFailed(message))

    def _last(self, event: WireEvent) -> ChatEvent:
        response = event.response or WireResponse()
        usage = read_usage(response.usage or WireUsage())
        reason: FinishReason = "tool_calls" if self._calls else "stop"
        match event.type:
            case "response.completed":
                return Finished(reason=reason, usage=usage)
            case "response.incomplete":
                why = response.incomplete_details and response.incomplete_details.reason
                return Finished(
                    reason="content_filter" if why == "content_filter" else "length", usage=usage
                )
        said = response.error or event.error or {"message": event.message, "code": event.code}
        return Failed(read_error_object(IN_STREAM, said))


def read_usage(wire: WireUsage) -> Usage:
    """Read token counts."""
    prompt = wire.input_tokens_details or WireDetails()
    completion = wire.output_tokens_details or WireDetails()
    return Usage(
        prompt_tokens=wire.input_tokens,
        completion_tokens=wire.output_tokens,
        cached_tokens=prompt.cached_tokens or 0,
        reasoning_tokens=completion.reasoning_tokens or 0,
    )
