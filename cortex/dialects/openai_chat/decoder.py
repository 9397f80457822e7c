"""
A server's streamed chat completion, read as events.

Takes what servers are known to do: ids repeated in every delta of a call, ``reasoning`` for
``reasoning_content``, usage in any chunk, no ``[DONE]``, ``stop`` where calls were made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
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
from cortex.dialects.openai_chat.chunk import (
    WireCall,
    WireChoice,
    WireDelta,
    WireFunction,
    WireLogprobs,
    decode_chunk,
    read_logprob,
    read_usage,
)
from cortex.dialects.openai_errors import read_error_object
from cortex.dialects.sse import SseReader
from cortex.errors import CortexError, UpstreamDied, UpstreamFailed
from cortex.wire import encode

REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
BROKEN = ("abort", "error")  # reasons that are none
Choice = tuple[int, ChatEvent]


@attrs.define
class Call:
    """A call as the server counts it; *index* is ours once it has a name."""

    id: str
    index: int | None = None
    held: str = ""


@attrs.define
class Answer:
    """
    One choice, as far as it has come.

    Attributes:
        count: Of calls begun.
        current: The call that was said last, until something else is.
    """

    calls: dict[int, Call] = attrs.field(factory=dict)
    count: int = 0
    current: int | None = None
    is_started: bool = False
    reason: FinishReason | None = None
    stop_string: str | None = None


class StreamDecoder:
    """Reads one answer; of a request that wants one call at a time, the first call."""

    def __init__(self, request: ChatRequest) -> None:
        self._request = request
        self._sse = SseReader()
        self._answers = [Answer() for _ in request.choices()]
        self._usage = Usage()
        self._is_over = False

    def feed(self, data: bytes) -> Sequence[Choice]:
        events: list[Choice] = []
        for _, said in self._sse.feed(data):
            if self._is_over:
                break
            events += self._event(said)
        return events

    def end(self) -> Sequence[Choice]:
        return [] if self._is_over else list(self._finish())

    def _event(self, data: bytes) -> Iterator[Choice]:
        if data.strip() == b"[DONE]":
            yield from self._finish()
            return
        try:
            chunk = decode_chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            yield self._fail(UpstreamFailed(f"the server sent an event that is no chunk: {error}"))
            return
        if chunk.error is not None or chunk.object == "error":
            said = {"message": chunk.message, "code": chunk.code}
            yield self._fail(read_error_object(200, {"error": chunk.error or said}))
            return
        if chunk.usage is not None:
            self._usage = read_usage(chunk.usage)
        for choice in chunk.choices or ():
            if 0 <= choice.index < len(self._answers) and not self._is_over:
                yield from self._choice(choice)
        if chunk.choices == [] and chunk.usage and all(a.reason for a in self._answers):
            yield from self._finish()

    def _choice(self, choice: WireChoice) -> Iterator[Choice]:
        answer, number = self._answers[choice.index], choice.index
        if not answer.is_started:
            answer.is_started = True
            yield number, Started(prompt_tokens=self._usage.prompt_tokens)
        if choice.delta is not None:
            for event in self._delta(answer, choice.delta, choice.logprobs):
                yield number, event
        if self._is_over:
            return
        if choice.finish_reason in BROKEN:
            yield self._fail(UpstreamDied(f"the server gave up: {choice.finish_reason}"))
        elif choice.finish_reason:
            reason = REASONS.get(choice.finish_reason, "stop")
            answer.reason = "tool_calls" if reason == "stop" and answer.count else reason
            for matched in (choice.stop_reason, choice.matched_stop):
                if matched in self._request.sampling.stop:
                    answer.stop_string = matched

    def _delta(
        self, answer: Answer, delta: WireDelta, logprobs: WireLogprobs | None
    ) -> Iterator[ChatEvent]:
        if thought := delta.reasoning_content or delta.reasoning:
            answer.current = None
            yield ThinkingDelta(thought)
        text = delta.content or delta.refusal or ""
        asked = self._request.sampling.logprobs is not None and not (thought or delta.tool_calls)
        tokens = logprobs.content if asked and logprobs is not None else None
        if text or tokens:
            answer.current = None
            yield TextDelta(text, tuple(map(read_logprob, tokens or ())))
        for call in delta.tool_calls or ():
            yield from self._call(answer, call)

    def _call(self, answer: Answer, said: WireCall) -> Iterator[ChatEvent]:
        """
        Read a delta of a call.

        A new id with a name is a new call, whatever its index; so is another name where there is
        neither.
        """
        function = said.function or WireFunction()
        key = said.index if said.index is not None else max(answer.calls, default=0)
        call = answer.calls.get(key)
        is_new = call is None or (
            bool(function.name)
            and (said.id != call.id if said.id else said.index is None and call.index is not None)
        )
        if call is None or is_new:
            call = answer.calls[key] = Call(id=said.id or "")
        arguments = function.arguments or ""
        call.held += arguments if isinstance(arguments, str) else encode(arguments).decode()
        if call.index is None and function.name:
            call.index, answer.count = answer.count, answer.count + 1
            call.id = call.id or f"call_{self._request.id}_{call.index}"
            if self._is_wanted(call):
                answer.current = call.index
                yield ToolCallStarted(index=call.index, id=call.id, name=function.name)
        if call.index is not None and call.held and self._is_wanted(call):
            if call.index == answer.current:
                yield ToolCallDelta(index=call.index, arguments=call.held)
            elif call.held.strip() != "{}":
                yield self._fail(UpstreamFailed("the server mixes up what its calls say"))[1]
            call.held = ""

    def _is_wanted(self, call: Call) -> bool:
        return self._request.tool_choice.parallel or call.index == 0

    def _finish(self) -> Iterator[Choice]:
        """Say how it ended; the first choice has the tokens of all of them."""
        if any(answer.reason is None for answer in self._answers):
            yield self._fail(UpstreamDied("the server's answer broke off"))
            return
        self._is_over = True
        for number, answer in enumerate(self._answers):
            assert answer.reason is not None  # noqa: S101 - looked at above
            usage = Usage() if number else self._usage
            yield (
                number,
                Finished(reason=answer.reason, usage=usage, stop_string=answer.stop_string),
            )

    def _fail(self, error: CortexError) -> Choice:
        self._is_over = True
        return 0, Failed(error)
