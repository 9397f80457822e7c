"""An answer as one JSON object."""

from __future__ import annotations

from typing import Any

import msgspec

from cortex.chat.events import (
    ChatEvent,
    Failed,
    Finished,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStarted,
)
from cortex.chat.request import ChatRequest
from cortex.dialects.anthropic_messages import answer, errors
from cortex.dialects.signature import sign
from cortex.wire import encode


class BodyEncoder:
    """See the module."""

    content_type = "application/json"

    def __init__(self, request: ChatRequest) -> None:
        self._request = request
        self._blocks: list[tuple[ToolCallStarted | str, list[str]]] = []

    def feed(self, event: ChatEvent, choice: int = 0) -> bytes:  # noqa: ARG002
        match event:
            case TextDelta(text):
                self._add("text", text)
            case ThinkingDelta(text):
                self._add("thinking", text)
            case ToolCallStarted():
                self._blocks.append((event, []))
            case ToolCallDelta(arguments=arguments):
                self._blocks[-1][1].append(arguments)
            case Finished():
                return self._body(event)
            case Failed(error):
                return encode(errors.envelope(error, self._request.id))
        return b""

    def keep_alive(self) -> bytes:
        return b""

    def _add(self, kind: str, text: str) -> None:
        if not text:
            return
        if not self._blocks or self._blocks[-1][0] != kind:
            self._blocks.append((kind, []))
        self._blocks[-1][1].append(text)

    def _body(self, event: Finished) -> bytes:
        has_calls = any(isinstance(kind, ToolCallStarted) for kind, _ in self._blocks)
        return encode(
            answer.message(
                self._request,
                content=[self._block(kind, "".join(said)) for kind, said in self._blocks],
                **answer.stop(event, has_calls=has_calls),
                usage=answer.usage_object(event.usage),
            )
        )

    def _block(self, kind: ToolCallStarted | str, said: str) -> dict[str, Any]:
        if isinstance(kind, ToolCallStarted):
            call = {"type": "tool_use", "id": kind.id, "name": kind.name}
            return {**call, "input": input_of(said)}
        if kind == "text":
            return {"type": "text", "text": said}
        if self._request.private:
            return {"type": "thinking", "thinking": "", "signature": sign(said)}
        return {"type": "thinking", "thinking": said, "signature": sign()}


def input_of(arguments: str) -> dict[str, Any]:
    """Return the arguments of a call as an object; an empty one if they are none, or cut off."""
    try:
        return msgspec.json.decode(arguments, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return {}
