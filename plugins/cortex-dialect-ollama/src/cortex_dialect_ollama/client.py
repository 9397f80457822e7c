"""
The other half: asks a server that speaks Ollama's API.

What a chat of Ollama's cannot say is refused: bare prompts, several answers, a tool that must be
called, logit biases, images by address, arguments that are no object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from cortex.api import ReplyDecoder
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
from cortex.chat.request import (
    ChatRequest,
    Image,
    Message,
    Part,
    Reasoning,
    Thinking,
    ToolCall,
    ToolResult,
)
from cortex.errors import (
    CortexError,
    InvalidRequest,
    ModelNotFound,
    NoNodeAvailable,
    RateLimited,
    UnsupportedParameter,
    UpstreamDied,
    UpstreamFailed,
)
from cortex.wire import encode

NS_PER_MS = 1_000_000
EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high"}
FINISHES: Mapping[str, FinishReason] = {"length": "length", "content_filter": "content_filter"}
ERROR_CHARS = 300
KINDS: Mapping[int, type[CortexError]] = {
    404: ModelNotFound,
    429: RateLimited,
    503: NoNodeAvailable,
}


class LineMessage(msgspec.Struct):
    """``message`` of a line."""

    content: str | None = None
    thinking: str | None = None
    tool_calls: list[LineCall] | None = None


class LineFunction(msgspec.Struct):
    """``function`` of a call; its arguments are kept as they came."""

    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class LineCall(msgspec.Struct):
    """An element of ``tool_calls``."""

    function: LineFunction
    id: str | None = None


class LineLogprob(msgspec.Struct):
    """An element of ``logprobs``."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[LineLogprob] | None = None

    def read(self) -> TokenLogprob:
        top = tuple(each.read() for each in self.top_logprobs or ())
        data = self.token.encode() if self.bytes is None else bytes(self.bytes)
        return TokenLogprob(token=self.token, logprob=self.logprob, data=data, top=top)


class Line(msgspec.Struct):
    """A line of an answer."""

    message: LineMessage = msgspec.field(default_factory=LineMessage)
    logprobs: list[LineLogprob] | None = None
    error: str | None = None
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    load_duration: int = 0


_decode = msgspec.json.Decoder(Line).decode
_is_object = msgspec.json.Decoder(dict[str, Any]).decode


class OllamaChatClient:
    """See the module."""

    path = "/api/chat"

    def render_request(self, request: ChatRequest) -> bytes:
        refuse_unsayable(request)
        parts = (part for message in request.messages for part in message.parts)
        names = {part.id: part.name for part in parts if isinstance(part, ToolCall)}
        body: dict[str, Any] = {
            "model": request.model,
            "messages": [
                turn for message in request.messages for turn in render_turns(message, names)
            ],
            "stream": True,
        }
        if request.tools and request.tool_choice.mode != "none":
            body["tools"] = [
                {
                    "type": "function",
                    "function": {
                        "name": tool.name,
                        "description": tool.description,
                        "parameters": tool.parameters,
                    },
                }
                for tool in request.tools
            ]
        if request.format is not None:
            body["format"] = "json" if request.format.schema is None else request.format.schema
        if (think := render_think(request.reasoning)) is not None:
            body["think"] = think
        if request.sampling.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": request.sampling.logprobs}
        if options := render_options(request):
            body["options"] = options
        return encode(body)

    def decoder(self, request: ChatRequest) -> ReplyDecoder:
        return LineDecoder(request)

    def read_error(self, status: int, body: bytes) -> CortexError:
        try:
            message = str(msgspec.json.decode(body)["error"])
        except (msgspec.DecodeError, LookupError, TypeError):
            message = body[:ERROR_CHARS].decode("utf-8", "replace") or f"the server says {status}"
        kind = InvalidRequest if status < HTTPStatus.INTERNAL_SERVER_ERROR else UpstreamFailed
        return KINDS.get(status, kind)(message)


def refuse_unsayable(request: ChatRequest) -> None:
    """Raise for the first thing Ollama's API has no words for."""
    asked = {
        "prompt": bool(request.prompts),
        "n": request.n > 1,
        "tool_choice": bool(request.tools) and request.tool_choice.mode == "required",
        "logit_bias": bool(request.sampling.logit_bias),
    }
    for param, is_asked in asked.items():
        if is_asked:
            raise UnsupportedParameter(f"{param} is not known to Ollama's API", param=param)


def render_options(request: ChatRequest) -> dict[str, Any]:
    """Return ``options``: only what the client has an opinion of."""
    sampling = request.sampling
    said = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": -1 if sampling.asks("repetition_penalty") else None,  # else 64
        "seed": sampling.seed,
        "num_predict": sampling.max_tokens,
        "stop": sampling.stop or None,
        "frequency_penalty": sampling.frequency_penalty or None,
        "presence_penalty": sampling.presence_penalty or None,
    }
    return {name: value for name, value in said.items() if value is not None}


def render_think(reasoning: Reasoning) -> bool | str | None:
    """Return ``think``."""
    if reasoning.enabled is False or reasoning.effort == "none":
        return False
    return EFFORTS.get(reasoning.effort or "", reasoning.enabled)


def render_turns(message: Message, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a turn as Ollama's turns: each result is one, after which the others wait."""
    if message.role == "tool":
        return [
            {
                "role": "tool",
                "content": f"[tool error] {part.text}" if part.is_error else part.text,
                **render_images(part.parts),
                "tool_call_id": part.call_id,
                **({"tool_name": names[part.call_id]} if part.call_id in names else {}),
            }
            for part in message.parts
            if isinstance(part, ToolResult)
        ]
    turn: dict[str, Any] = {"role": message.role, "content": message.text}
    if thought := "".join(part.text for part in message.parts if isinstance(part, Thinking)):
        turn["thinking"] = thought
    calls = [part for part in message.parts if isinstance(part, ToolCall)]
    if calls:
        turn["tool_calls"] = [render_call(call) for call in calls]
    return [turn | render_images(message.parts)]


def render_call(call: ToolCall) -> dict[str, Any]:
    """Return a call of an earlier turn."""
    arguments = call.arguments.encode() or b"{}"
    try:
        _is_object(arguments)
    except (msgspec.DecodeError, RecursionError):
        raise UnsupportedParameter(
            f"the arguments of the call {call.id!r} are no JSON object", param="messages"
        ) from None
    return {"id": call.id, "function": {"name": call.name, "arguments": msgspec.Raw(arguments)}}


def render_images(parts: Sequence[Part]) -> dict[str, list[str]]:
    """Return ``images``, if there are any."""
    images = []
    for part in parts:
        if isinstance(part, Image):
            _, is_data, data = part.url.partition(";base64,")
            if not (is_data and part.url.startswith("data:")):
                raise UnsupportedParameter("Ollama's API takes no images by address", param="image")
            images.append(data)
    return {"images": images} if images else {}


class LineDecoder:
    """
    Reads the lines of an answer; the prompt's tokens are known at its end only.

    Of a request that wants one call at a time it is the first call.
    """

    def __init__(self, request: ChatRequest) -> None:
        self._id = request.id
        self._is_parallel = request.tool_choice.parallel
        self._rest = b""
        self._calls = 0
        self._has_started = self._is_over = False

    def feed(self, data: bytes) -> Sequence[tuple[int, ChatEvent]]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        events: list[ChatEvent] = []
        for line in lines:
            if line.strip() and not self._is_over:
                events += self._take(line)
        return [(0, event) for event in events]

    def end(self) -> Sequence[tuple[int, ChatEvent]]:
        """Return what the end means; the last line may do without a newline."""
        try:
            _is_object(self._rest)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            events = []
        else:
            events = list(self.feed(b"\n"))
        if not self._is_over:
            self._is_over = True
            events.append((0, Failed(UpstreamDied("the server broke off its answer"))))
        return events

    def _take(self, raw: bytes) -> list[ChatEvent]:
        try:
            line = _decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return self._fail(f"the server sent a line that is none of Ollama's: {error}")
        if line.error is not None:
            return self._fail(line.error)
        events: list[ChatEvent] = []
        if not self._has_started:
            self._has_started = True
            events.append(Started(prompt_tokens=line.prompt_eval_count))
        said = line.message
        if said.thinking:
            events.append(ThinkingDelta(said.thinking))
        if said.content or line.logprobs:
            logprobs = tuple(each.read() for each in line.logprobs or ())
            events.append(TextDelta(said.content or "", logprobs))
        for call in said.tool_calls or ():
            events += self._call(call)
        if line.done:
            self._is_over = True
            events.append(self._finished(line))
        return events

    def _fail(self, message: str) -> list[ChatEvent]:
        self._is_over = True
        return [Failed(UpstreamFailed(message))]

    def _call(self, call: LineCall) -> list[ChatEvent]:
        if self._calls and not self._is_parallel:
            return []
        index, self._calls = self._calls, self._calls + 1
        call_id = call.id or f"call_{self._id}_{index}"
        arguments = bytes(call.function.arguments).decode()
        return [
            ToolCallStarted(index=index, id=call_id, name=call.function.name),
            ToolCallDelta(index=index, arguments=arguments),
        ]

    def _finished(self, line: Line) -> Finished:
        reason = FINISHES.get(line.done_reason or "", "tool_calls" if self._calls else "stop")
        usage = Usage(
            prompt_tokens=line.prompt_eval_count,
            completion_tokens=line.eval_count,
            queue_ms=line.load_duration / NS_PER_MS,
            prefill_ms=line.prompt_eval_duration / NS_PER_MS,
            decode_ms=line.eval_duration / NS_PER_MS,
        )
        return Finished(reason=reason, usage=usage)
