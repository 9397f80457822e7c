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
    TokenLogprob,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from cortex.chat.request import ChatRequest
from cortex.dialects.openai_errors import read_error_object
from cortex.dialects.openai_responses.tools import joined
from cortex.dialects.sse import SseReader
from cortex.errors import UpstreamDied, UpstreamFailed
from cortex.wire import encode

IN_STREAM = 200


class WireTop(msgspec.Struct):
    """A likely token."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class WireLogprob(WireTop):
    """A token of the answer."""

    top_logprobs: list[WireTop] = []


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
    delta: str = ""
    logprobs: list[WireLogprob] | None = None
    item: WireOutput | None = None
    input: str = ""
    response: WireResponse | None = None
    error: object = None
    message: str | None = None
    code: object = None


decode_event = msgspec.json.Decoder(WireEvent).decode


class StreamDecoder:
    """See `cortex.api.ReplyDecoder`."""

    def __init__(self, request: ChatRequest) -> None:
        self._has_logprobs = request.sampling.logprobs is not None
        self._reader = SseReader()
        self._calls = 0
        self._thought = False
        self._is_over = False

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
            event = decode_event(data)
        except msgspec.DecodeError:
            self._is_over = True
            yield Failed(UpstreamFailed("the server sent what is no event of a response"))
            return
        yield from self._events(event)

    def _events(self, event: WireEvent) -> Iterator[ChatEvent]:
        match event.type:
            case "response.output_text.delta":
                logprobs = event.logprobs if self._has_logprobs else None
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
                yield ToolCallDelta(index=self._calls - 1, arguments=event.delta)
            case "response.custom_tool_call_input.done":
                arguments = encode({"input": event.input}).decode()
                yield ToolCallDelta(index=self._calls - 1, arguments=arguments)
            case _:
                yield from self._steps(event)

    def _steps(self, event: WireEvent) -> Iterator[ChatEvent]:
        """Read what is no piece of anything."""
        match event.type:
            case "response.created":
                yield Started(prompt_tokens=0)
            case "response.output_item.added" if event.item is not None:
                yield from self._begin(event.item)
            case "response.completed" | "response.incomplete" | "response.failed" | "error":
                self._is_over = True
                yield self._last(event)

    def _begin(self, item: WireOutput) -> Iterator[ChatEvent]:
        if item.type in ("function_call", "custom_tool_call"):
            name = joined(item.namespace, item.name)
            yield ToolCallStarted(index=self._calls, id=item.call_id, name=name)
            self._calls += 1

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


def read_logprob(wire: WireLogprob) -> TokenLogprob:
    """Read the log probability of a token."""
    top = wire.top_logprobs
    return TokenLogprob(
        token=wire.token,
        logprob=wire.logprob,
        data=bytes(wire.bytes or ()),
        top=tuple(
            TokenLogprob(token=t.token, logprob=t.logprob, data=bytes(t.bytes or ())) for t in top
        ),
    )
