"""A server's streamed message, read as events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any

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
from cortex.dialects.anthropic_messages.errors import TYPES
from cortex.dialects.openai_errors import read_error_object
from cortex.dialects.signature import carried_by
from cortex.dialects.sse import SseReader
from cortex.errors import CortexError, UpstreamDied, UpstreamFailed
from cortex.wire import encode

REASONS: dict[str, FinishReason] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
STATUSES = {kind: status for status, kind in TYPES.items()}


class WireBlock(msgspec.Struct):
    """``content_block``."""

    type: str
    id: str = ""
    name: str = ""
    text: str = ""
    thinking: str = ""
    input: dict[str, Any] | None = None


class WireDelta(msgspec.Struct):
    """``delta``, of a block or of the message."""

    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None


class Details(msgspec.Struct):
    """``usage.output_tokens_details``."""

    thinking_tokens: int | None = None


class WireUsage(msgspec.Struct):
    """``usage``; what is null was said before, or is nothing."""

    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None
    output_tokens_details: Details | None = None


class WireMessage(msgspec.Struct):
    """``message``."""

    usage: WireUsage | None = None


class WireEvent(msgspec.Struct):
    """An event of any type: each has some of these fields."""

    type: str = ""
    message: WireMessage | None = None
    content_block: WireBlock | None = None
    delta: WireDelta | None = None
    usage: WireUsage | None = None
    error: Any = None


class WireKind(msgspec.Struct):
    """What tells whether an event is read at all."""

    type: str = ""
    error: Any = None


READ = ("message_", "content_block_")  # how the types of events begin that are read
_decode_kind = msgspec.json.Decoder(WireKind).decode
_decode = msgspec.json.Decoder(WireEvent).decode


class StreamDecoder:
    """
    Reads one answer; what it has no word for is skipped.

    Of a request that wants one call at a time it is the first call.
    """

    def __init__(self, request: ChatRequest) -> None:
        self._request = request
        self._sse = SseReader()
        self._block = WireBlock(type="")  # the last to begin
        self._has_thought = False  # in the last block
        self._calls = 0
        self._usage = Usage()
        self._stop: WireDelta | None = None
        self._is_started = self._is_over = False

    def feed(self, data: bytes) -> Sequence[tuple[int, ChatEvent]]:
        events: list[tuple[int, ChatEvent]] = []
        for _, said in self._sse.feed(data):
            if self._is_over:
                break
            events += [(0, event) for event in self._read(said)]
        return events

    def end(self) -> Sequence[tuple[int, ChatEvent]]:
        return [] if self._is_over else [(0, event) for event in self._finish()]

    def _read(self, data: bytes) -> Iterator[ChatEvent]:
        try:
            kind = _decode_kind(data)
            if kind.error is None and not kind.type.startswith(READ):
                return
            event = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            yield self._fail(UpstreamFailed(f"the server sent an event that is none: {error}"))
            return
        if event.error is not None:
            yield self._fail(read_stream_error(event.error))
            return
        if event.message is not None:
            self._count(event.message.usage)
        self._count(event.usage)
        if not self._is_started:
            self._is_started = True
            yield Started(prompt_tokens=self._usage.prompt_tokens)
        match event.type:
            case "content_block_start" if event.content_block is not None:
                yield from self._begin(event.content_block)
            case "content_block_delta" if event.delta is not None:
                yield from self._delta(event.delta)
            case "message_delta" if event.delta is not None and event.delta.stop_reason:
                self._stop = event.delta
            case "message_stop":
                yield from self._finish()

    def _begin(self, block: WireBlock) -> Iterator[ChatEvent]:
        """Begin a block; some servers put all of it there."""
        self._block, self._has_thought = block, False
        if block.type == "tool_use":
            if self._calls and not self._request.tool_choice.parallel:
                block.type = ""
                return
            call_id = block.id or f"toolu_{self._request.id}_{self._calls}"
            yield ToolCallStarted(index=self._calls, id=call_id, name=block.name)
            self._calls += 1
        said = encode(block.input).decode() if block.input else ""
        yield from self._delta(
            WireDelta(text=block.text, thinking=block.thinking, partial_json=said)
        )

    def _delta(self, delta: WireDelta) -> Iterator[ChatEvent]:
        match self._block.type:
            case "text" if delta.text:
                yield TextDelta(delta.text)
            case "thinking" if delta.thinking:
                self._has_thought = True
                yield ThinkingDelta(delta.thinking)
            case "thinking" if not self._has_thought and (thought := carried_by(delta.signature)):
                yield ThinkingDelta(thought)
            case "tool_use" if delta.partial_json:
                yield ToolCallDelta(index=self._calls - 1, arguments=delta.partial_json)

    def _count(self, said: WireUsage | None) -> None:
        """Take in token counts; those of the prompt come in three parts."""
        if said is None:
            return
        usage = self._usage
        cached = usage.cached_tokens
        if said.cache_read_input_tokens is not None:
            cached = said.cache_read_input_tokens
        prompt = usage.prompt_tokens
        if said.input_tokens is not None:
            prompt = said.input_tokens + cached + (said.cache_creation_input_tokens or 0)
        details = said.output_tokens_details
        thought = details.thinking_tokens if details is not None else None
        self._usage = Usage(
            prompt_tokens=prompt,
            cached_tokens=cached,
            completion_tokens=said.output_tokens or usage.completion_tokens,
            reasoning_tokens=thought or usage.reasoning_tokens,
        )

    def _finish(self) -> Iterator[ChatEvent]:
        """Say how it ended: what has a reason to end is whole."""
        if self._stop is None:
            yield self._fail(UpstreamDied("the server's answer broke off"))
            return
        self._is_over = True
        reason = REASONS.get(self._stop.stop_reason or "", "stop")
        if reason == "stop" and self._calls:
            reason = "tool_calls"
        yield Finished(reason=reason, usage=self._usage, stop_string=self._stop.stop_sequence)

    def _fail(self, error: CortexError) -> Failed:
        self._is_over = True
        return Failed(error)


def read_stream_error(said: Any) -> CortexError:
    """Read an error in the middle of a stream: its type stands for the status it has no more."""
    kind = said.get("type") if isinstance(said, dict) else None
    status = STATUSES.get(str(kind), HTTPStatus.BAD_GATEWAY)
    if kind == "invalid_request_error":
        status = HTTPStatus.BAD_REQUEST
    return read_error_object(status, {"error": said})
