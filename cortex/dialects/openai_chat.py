"""
OpenAI Chat Completions.

Reference: https://platform.openai.com/docs/api-reference/chat.  Unknown fields are ignored; a
field we know and cannot honour is a 400 that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from cortex import hookimpl
from cortex.api import ChatClient, Dialect, Endpoint, Register, ReplyEncoder
from cortex.chat.events import ChatEvent, Failed, Finished, Started, TextDelta, Usage
from cortex.chat.request import ChatRequest, Message, Sampling, Text
from cortex.dialects.openai import (
    OpenAIErrors,
    OpenAIModels,
    error_object,
    stream_error,
    usage_object,
)
from cortex.errors import MissingParameter, UnsupportedParameter
from cortex.wire import decode, encode

Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class WirePart(msgspec.Struct):
    """An element of a content array."""

    type: str
    text: str | None = None


class WireMessage(msgspec.Struct):
    """An element of ``messages``."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[WirePart] | None = None
    tool_calls: list[Any] | None = None


class StreamOptions(msgspec.Struct):
    """``stream_options``."""

    include_usage: bool = False


class ResponseFormat(msgspec.Struct):
    """``response_format``."""

    type: str = "text"


class WireRequest(msgspec.Struct):
    """The body of ``POST /v1/chat/completions``."""

    model: Annotated[str, msgspec.Meta(min_length=1)]
    messages: Annotated[list[WireMessage], msgspec.Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: int | None = None
    seed: int | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[int, Annotated[float, msgspec.Meta(ge=-100, le=100)]] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    # Known, and not honoured unless they say nothing.
    n: Positive | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    audio: Any = None
    modalities: list[str] | None = None


_decode = msgspec.json.Decoder(WireRequest).decode


class OpenAIChat(OpenAIErrors, OpenAIModels):
    """Both JSON bodies and SSE streams of chat completions."""

    client: ChatClient | None = None

    endpoints: Sequence[Endpoint] = (
        Endpoint("POST", "/v1/chat/completions", "chat"),
        Endpoint("GET", "/v1/models", "list_models"),
        Endpoint("GET", "/v1/models/{model:.+}", "get_model"),
    )

    def parse_request(self, body: bytes, request_id: str) -> ChatRequest:
        wire = decode(_decode, body)
        refuse_unsupported(wire)
        stop = wire.stop if isinstance(wire.stop, list) else [wire.stop] if wire.stop else []
        return ChatRequest(
            id=request_id,
            model=wire.model,
            messages=tuple(parse_message(m, i) for i, m in enumerate(wire.messages)),
            sampling=Sampling(
                temperature=wire.temperature,
                top_p=wire.top_p,
                top_k=max(wire.top_k, 0) if wire.top_k is not None else None,
                seed=wire.seed,
                max_tokens=wire.max_completion_tokens or wire.max_tokens,
                stop=tuple(filter(None, stop)),
                frequency_penalty=wire.frequency_penalty or 0.0,
                presence_penalty=wire.presence_penalty or 0.0,
                logit_bias=wire.logit_bias or {},
            ),
            stream=bool(wire.stream),
            include_usage=bool(wire.stream_options and wire.stream_options.include_usage),
        )

    def encoder(self, request: ChatRequest, created: int) -> ReplyEncoder:
        if request.stream:
            return StreamEncoder(request, created)
        return BodyEncoder(request, created)


def refuse_unsupported(wire: WireRequest) -> None:
    """Raise for the first field that asks for what we cannot do."""
    asked = {
        "n": wire.n not in (None, 1),
        "tools": bool(wire.tools),
        "functions": bool(wire.functions),
        "response_format": wire.response_format is not None and wire.response_format.type != "text",
        "logprobs": bool(wire.logprobs),
        "top_logprobs": bool(wire.top_logprobs),
        "audio": wire.audio is not None,
        "modalities": wire.modalities not in (None, [], ["text"]),
    }
    for param, is_asked in asked.items():
        if is_asked:
            raise UnsupportedParameter(f"{param} is not supported", param=param)


def parse_message(wire: WireMessage, index: int) -> Message:
    """Read one turn; text reads the same as a string and as parts."""
    at = f"messages[{index}]"
    if wire.role == "tool" or wire.tool_calls:
        field = "role" if wire.role == "tool" else "tool_calls"
        raise UnsupportedParameter("tool calls are not supported", param=f"{at}.{field}")
    parts = [WirePart("text", wire.content)] if isinstance(wire.content, str) else wire.content
    texts = []
    for number, part in enumerate(parts or []):
        where = f"{at}.content[{number}]"
        if part.type != "text":
            raise UnsupportedParameter(
                f"{where}: content of type {part.type!r} is not supported", param=where
            )
        if part.text is None:
            raise MissingParameter(f"{where}.text is required", param=f"{where}.text")
        texts.append(Text(part.text))
    role = "system" if wire.role == "developer" else wire.role
    return Message(role=role, parts=tuple(texts))


class StreamEncoder:
    """Server-sent events: a role, deltas, a finish reason, the usage if asked for, ``[DONE]``."""

    content_type = "text/event-stream"

    def __init__(self, request: ChatRequest, created: int) -> None:
        self._include_usage = request.include_usage
        head = encode(
            {
                "id": f"chatcmpl-{request.id}",
                "object": "chat.completion.chunk",
                "created": created,
                "model": request.model,
            }
        )
        self._head = b"data: " + head[:-1]
        self._tail = b',"usage":null}\n\n' if self._include_usage else b"}\n\n"

    def feed(self, event: ChatEvent, choice: int = 0) -> bytes:  # noqa: ARG002
        match event:
            case TextDelta(text):
                return self._choice(b'{"content":' + encode(text) + b"}")
            case Started():
                return self._choice(b'{"role":"assistant","content":""}')
            case Finished(reason=reason, usage=usage):
                last = self._choice(b"{}", encode(reason))
                if self._include_usage:
                    last += self._head + b',"choices":[],"usage":'
                    last += encode(usage_object(usage)) + b"}\n\n"
                return last + b"data: [DONE]\n\n"
            case Failed(error):
                return stream_error(error)
        return b""

    def keep_alive(self) -> bytes:
        return self._choice(b"{}")

    def _choice(self, delta: bytes, reason: bytes = b"null") -> bytes:
        choice = b',"choices":[{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}]'
        return self._head + choice % (delta, reason) + self._tail


class BodyEncoder:
    """One JSON object at the end."""

    content_type = "application/json"

    def __init__(self, request: ChatRequest, created: int) -> None:
        self._request = request
        self._created = created
        self._text: list[str] = []

    def feed(self, event: ChatEvent, choice: int = 0) -> bytes:  # noqa: ARG002
        match event:
            case TextDelta(text):
                self._text.append(text)
            case Finished(reason=reason, usage=usage):
                return self._body(reason, usage)
            case Failed(error):
                return encode({"error": error_object(error)})
        return b""

    def keep_alive(self) -> bytes:
        return b""

    def _body(self, reason: str, usage: Usage) -> bytes:
        message = {"role": "assistant", "content": "".join(self._text), "refusal": None}
        return encode(
            {
                "id": f"chatcmpl-{self._request.id}",
                "object": "chat.completion",
                "created": self._created,
                "model": self._request.model,
                "choices": [
                    {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
                ],
                "usage": usage_object(usage),
            }
        )


@hookimpl
def cortex_register_dialects(register: Register[Dialect]) -> None:
    register("openai-chat", OpenAIChat, summary="POST /v1/chat/completions, GET /v1/models")
