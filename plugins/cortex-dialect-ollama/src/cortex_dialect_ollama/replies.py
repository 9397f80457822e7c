"""
Answers: JSON lines or one JSON body, and errors.

A chat and a generation differ in where an answer's text stands: a *piece* is that part of a line.
A call goes out once its arguments are whole; one that was cut off is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from cortex.chat.events import (
    ChatEvent,
    Failed,
    Finished,
    TextDelta,
    ThinkingDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStarted,
)
from cortex.chat.request import ChatRequest
from cortex.errors import CortexError
from cortex.wire import encode
from cortex_dialect_ollama.models import timestamp

Piece = Callable[[str, str, Sequence[bytes]], bytes]
NS_PER_MS = 1_000_000
_is_object = msgspec.json.Decoder(dict[str, Any]).decode


def chat_piece(text: str, thinking: str = "", calls: Sequence[bytes] = ()) -> bytes:
    """Return ``message``."""
    said = b'"message":{"role":"assistant","content":' + encode(text)
    if thinking:
        said += b',"thinking":' + encode(thinking)
    if calls:
        said += b',"tool_calls":[' + b",".join(calls) + b"]"
    return said + b"}"


def generate_piece(text: str, thinking: str = "", calls: Sequence[bytes] = ()) -> bytes:  # noqa: ARG001 - a prompt has no tools
    """Return ``response`` and ``thinking``."""
    said = b'"response":' + encode(text)
    return said + b',"thinking":' + encode(thinking) if thinking else said


class OpenCall:
    """The call whose arguments are coming."""

    def __init__(self, started: ToolCallStarted) -> None:
        self._started = started
        self._arguments: list[str] = []

    def add(self, arguments: str) -> None:
        self._arguments.append(arguments)

    def closed(self) -> list[bytes]:
        """Return the call, or nothing if its arguments are no whole object."""
        arguments = "".join(self._arguments).encode() or b"{}"
        try:
            _is_object(arguments)
        except (msgspec.DecodeError, RecursionError):
            return []
        started = self._started
        head = {"index": started.index, "name": started.name}
        function = encode(head)[:-1] + b',"arguments":' + arguments.strip() + b"}"
        return [b'{"id":' + encode(started.id) + b',"function":' + function + b"}"]


class LineEncoder:
    """A line for each delta, and one at the end with ``"done": true``."""

    content_type = "application/x-ndjson"

    def __init__(self, request: ChatRequest, created: int, piece: Piece) -> None:
        head = encode({"model": request.model, "created_at": timestamp(created)})
        self._head = head[:-1] + b","
        self._piece = piece
        self._is_load = not (request.messages or request.prompts)
        self._call: OpenCall | None = None

    def feed(self, event: ChatEvent, choice: int = 0) -> bytes:  # noqa: ARG002
        said = b""
        match event:
            case ToolCallDelta(arguments=arguments):
                if self._call is not None:
                    self._call.add(arguments)
                return b""
            case Failed(error):
                return render_error(error) + b"\n"
            case TextDelta(text, logprobs):
                said = self._line(self._piece(text, "", ()), logprobs)
            case ThinkingDelta(text):
                said = self._line(self._piece("", text, ()))
            case Finished():
                said = self._head + self._piece("", "", ()) + figures(event, self._is_load)
                said += b"}\n"
        said = self._close() + said
        if isinstance(event, ToolCallStarted):
            self._call = OpenCall(event)
        return said

    def keep_alive(self) -> bytes:
        return self._line(self._piece("", "", ()))

    def _close(self) -> bytes:
        call, self._call = self._call, None
        calls = call.closed() if call is not None else []
        return self._line(self._piece("", "", calls)) if calls else b""

    def _line(self, piece: bytes, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        if logprobs:
            piece += b',"logprobs":' + encode([logprob_object(each) for each in logprobs])
        return self._head + piece + b',"done":false}\n'


class BodyEncoder:
    """One JSON object at the end."""

    content_type = "application/json"

    def __init__(self, request: ChatRequest, created: int, piece: Piece) -> None:
        head = encode({"model": request.model, "created_at": timestamp(created)})
        self._head = head[:-1] + b","
        self._piece = piece
        self._is_load = not (request.messages or request.prompts)
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[OpenCall] = []
        self._logprobs: list[TokenLogprob] = []

    def feed(self, event: ChatEvent, choice: int = 0) -> bytes:  # noqa: ARG002
        match event:
            case TextDelta(text, logprobs):
                self._text.append(text)
                self._logprobs += logprobs
            case ThinkingDelta(text):
                self._thinking.append(text)
            case ToolCallStarted():
                self._calls.append(OpenCall(event))
            case ToolCallDelta(arguments=arguments):
                self._calls[-1].add(arguments)
            case Finished():
                return self._body(event)
            case Failed(error):
                return render_error(error)
        return b""

    def keep_alive(self) -> bytes:
        return b""

    def _body(self, finished: Finished) -> bytes:
        calls = [whole for call in self._calls for whole in call.closed()]
        body = self._head + self._piece("".join(self._text), "".join(self._thinking), calls)
        if self._logprobs:
            body += b',"logprobs":' + encode([logprob_object(each) for each in self._logprobs])
        return body + figures(finished, self._is_load) + b"}"


def figures(finished: Finished, is_load: bool) -> bytes:
    """Return the members of an answer's last line, after its piece."""
    usage = finished.usage
    reason = "load" if is_load else "stop" if finished.reason == "tool_calls" else finished.reason
    said: dict[str, object] = {"done": True, "done_reason": reason}
    if not is_load:
        waited, read, wrote = (
            round(ms * NS_PER_MS) for ms in (usage.queue_ms, usage.prefill_ms, usage.decode_ms)
        )
        said |= {
            "total_duration": waited + read + wrote,
            "load_duration": waited,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": read,
            "eval_count": usage.completion_tokens,
            "eval_duration": wrote,
        }
    return b"," + encode(said)[1:-1]


def logprob_object(token: TokenLogprob) -> dict[str, Any]:
    """Render a token's log probability, and those of the likeliest at its place."""
    said: dict[str, Any] = {
        "token": token.token,
        "logprob": token.logprob,
        "bytes": list(token.data),
    }
    return (
        said | {"top_logprobs": [logprob_object(top) for top in token.top]} if token.top else said
    )


def render_error(error: CortexError) -> bytes:
    """Return an error; in a stream a line of its own, after which nothing comes."""
    return encode({"error": str(error)})
