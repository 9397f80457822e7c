"""Answers as chat completions: a stream of chunks, or one body."""

from __future__ import annotations

from typing import Any

import attrs

from cortex.chat.events import (
    ChatEvent,
    Failed,
    Finished,
    Started,
    TextDelta,
    ThinkingDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    total_usage,
)
from cortex.chat.request import ChatRequest
from cortex.dialects.openai import error_object, stream_error, usage_object
from cortex.dialects.openai_chunks import Chunks
from cortex.wire import encode

ROLE = b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
LEAST_LOGPROB = -9999.0  # what is said of the impossible


class StreamEncoder:
    """
    Server-sent events: a role, deltas, a finish reason, the usage if asked for, ``[DONE]``.

    A call the model gives no arguments gets ``{}`` once it is over: clients parse what they have.
    """

    content_type = "text/event-stream"

    def __init__(self, request: ChatRequest, created: int) -> None:
        kind = "chat.completion.chunk"
        self._chunks = Chunks(request, created, f"chatcmpl-{request.id}", kind)
        self._starts = [start + b'"delta":' for start in self._chunks.starts]
        self._texts = [start + b'{"content":' for start in self._starts]
        self._thoughts = [start + b'{"reasoning_content":' for start in self._starts]
        self._goes_on = b'},"logprobs":null,"finish_reason":null}]' + self._chunks.tail
        self._counts_at_once = bool(request.private)
        self._bare: dict[int, int] = {}  # by choice, the last call, while it has no arguments

    def feed(self, event: ChatEvent, choice: int = 0) -> bytes:
        if choice in self._bare and isinstance(event, TextDelta | ThinkingDelta):
            return self._end_call(choice) + self.feed(event, choice)
        if type(event) is TextDelta and not event.logprobs:  # nearly all there are
            return self._texts[choice] + encode(event.text) + self._goes_on
        match event:
            case ThinkingDelta(text):
                return self._thoughts[choice] + encode(text) + self._goes_on
            case ToolCallDelta(index=index, arguments=arguments):
                self._bare.pop(choice, None)
                return self._arguments(choice, index, arguments)
            case _:
                return self._seldom(event, choice)

    def _seldom(self, event: ChatEvent, choice: int) -> bytes:
        match event:
            case TextDelta(text, logprobs):
                said = b'{"content":' + encode(text) + b"}"
                return self._chunk(choice, said, encode(logprobs_object(logprobs)))
            case ToolCallStarted():
                return self._end_call(choice) + self._start_call(choice, event)
            case Started(prompt_tokens=tokens):
                self._chunks.live.add(choice)
                tail = self._chunks.counted(tokens) if self._counts_at_once else self._chunks.tail
                return self._starts[choice] + ROLE + tail
            case Finished():
                return self._end_call(choice) + self._finish(choice, event)
            case Failed(error):
                return stream_error(error)
        return b""

    def keep_alive(self) -> bytes:
        """Return an empty delta, which clients count as life; before the role it would confuse."""
        live = self._chunks.live
        return self._chunk(min(live), b"{}") if live else b": keep-alive\n\n"

    def _chunk(self, choice: int, delta: bytes, logprobs: bytes = b"null") -> bytes:
        rest = b',"logprobs":%b,"finish_reason":null}]' % logprobs
        return self._starts[choice] + delta + rest + self._chunks.tail

    def _start_call(self, choice: int, call: ToolCallStarted) -> bytes:
        self._bare[choice] = call.index
        said = {"index": call.index, **call_object(call.id, call.name, "")}
        return self._chunk(choice, encode({"tool_calls": [said]}))

    def _end_call(self, choice: int) -> bytes:
        index = self._bare.pop(choice, None)
        return b"" if index is None else self._arguments(choice, index, "{}")

    def _arguments(self, choice: int, index: int, arguments: str) -> bytes:
        said = b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]'
        return self._starts[choice] + said % (index, encode(arguments)) + self._goes_on

    def _finish(self, choice: int, event: Finished) -> bytes:
        reason = encode(event.reason)
        if event.stop_string is not None:
            reason += b',"stop_reason":' + encode(event.stop_string)
        last = self._starts[choice] + b'{},"logprobs":null,"finish_reason":' + reason + b"}]"
        return last + self._chunks.tail + self._chunks.end(choice, event.usage)


@attrs.define
class Answer:
    """One choice of a body, as far as it has come."""

    text: list[str] = attrs.field(factory=list)
    thinking: list[str] = attrs.field(factory=list)
    calls: list[ToolCallStarted] = attrs.field(factory=list)
    arguments: dict[int, list[str]] = attrs.field(factory=dict)
    logprobs: list[TokenLogprob] = attrs.field(factory=list)
    finished: Finished | None = None


class BodyEncoder:
    """One JSON object at the end."""

    content_type = "application/json"

    def __init__(self, request: ChatRequest, created: int) -> None:
        self._request = request
        self._created = created
        self._answers = [Answer() for _ in request.choices()]
        self._usages: dict[int, Usage] = {}

    def feed(self, event: ChatEvent, choice: int = 0) -> bytes:
        answer = self._answers[choice]
        match event:
            case TextDelta(text, logprobs):
                answer.text.append(text)
                answer.logprobs += logprobs
            case ThinkingDelta(text):
                answer.thinking.append(text)
            case ToolCallStarted():
                answer.calls.append(event)
            case ToolCallDelta(index=index, arguments=arguments):
                answer.arguments.setdefault(index, []).append(arguments)
            case Finished():
                answer.finished = event
                self._usages[choice] = event.usage
                if len(self._usages) == len(self._answers):
                    return self._body()
            case Failed(error):
                return encode({"error": error_object(error)})
        return b""

    def keep_alive(self) -> bytes:
        return b""

    def _body(self) -> bytes:
        usage = total_usage(self._usages, self._request.n)
        return encode(
            {
                "id": f"chatcmpl-{self._request.id}",
                "object": "chat.completion",
                "created": self._created,
                "model": self._request.model,
                "choices": [self._choice(n, answer) for n, answer in enumerate(self._answers)],
                "usage": usage_object(usage),
            }
        )

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        assert answer.finished is not None  # noqa: S101 - the body is complete
        asked = self._request.sampling.logprobs is not None
        choice = {
            "index": index,
            "message": message_object(answer),
            "logprobs": logprobs_object(answer.logprobs) if asked else None,
            "finish_reason": answer.finished.reason,
        }
        if answer.finished.stop_string is not None:
            choice["stop_reason"] = answer.finished.stop_string
        return choice


def message_object(answer: Answer) -> dict[str, Any]:
    """Render what an assistant said."""
    text = "".join(answer.text)
    content = None if answer.calls and not text else text
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if answer.thinking:
        message["reasoning_content"] = "".join(answer.thinking)
    if answer.calls:
        message["tool_calls"] = [
            call_object(call.id, call.name, "".join(answer.arguments.get(call.index, ["{}"])))
            for call in answer.calls
        ]
    return message


def call_object(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """Render a call."""
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def logprobs_object(logprobs: tuple[TokenLogprob, ...] | list[TokenLogprob]) -> dict[str, Any]:
    """Render the log probabilities of some tokens."""
    content = [
        {**logprob_object(one), "top_logprobs": [logprob_object(top) for top in one.top]}
        for one in logprobs
    ]
    return {"content": content, "refusal": None}


def logprob_object(one: TokenLogprob) -> dict[str, Any]:
    """Render the log probability of a token."""
    logprob = max(one.logprob, LEAST_LOGPROB)
    return {"token": one.token, "logprob": logprob, "bytes": list(one.data)}
