"""
An answer as server-sent events.

``message_start``, then the blocks, one open at a time, each with a start, deltas and a stop, then
``message_delta`` with the totals and ``message_stop``.  The name of an event is its ``type``.
"""

from __future__ import annotations

from typing import Any, Literal

from cortex.chat.events import (
    ChatEvent,
    Failed,
    Finished,
    Started,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from cortex.chat.request import ChatRequest
from cortex.dialects.anthropic_messages import answer, errors
from cortex.dialects.signature import sign
from cortex.wire import encode

PING = b'event: ping\ndata: {"type": "ping"}\n\n'
WITHHELD_PER_PING = 32  # deltas of thought
END = b"}}\n\n"
EMPTY = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}
Kind = Literal["text", "thinking", "tool_use"]
DELTAS = {  # by kind of block: what is between its number and its text
    "text": b',"delta":{"type":"text_delta","text":',
    "thinking": b',"delta":{"type":"thinking_delta","thinking":',
    "tool_use": b',"delta":{"type":"input_json_delta","partial_json":',
}


class StreamEncoder:
    """See the module."""

    content_type = "text/event-stream"

    def __init__(self, request: ChatRequest) -> None:
        self._request = request
        self._is_withheld = bool(request.private)
        self._open: Kind | None = None
        self._index = -1  # of the last block
        self._delta = b""  # how a delta of the open block begins
        self._has_calls = False
        self._thoughts: list[str] = []  # of the open block, where they are withheld

    def feed(self, event: ChatEvent, choice: int = 0) -> bytes:  # noqa: ARG002
        match event:
            case TextDelta(text):  # with log probabilities alone it is empty
                data = self._say("text", text) if text else b""
            case ThinkingDelta(text):
                data = self._withhold(text) if self._is_withheld else self._say("thinking", text)
            case ToolCallDelta(arguments=arguments):
                data = self._delta + encode(arguments) + END
            case ToolCallStarted():
                self._has_calls = True
                block = {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}
                data = self._start("tool_use", block)
            case Started(prompt_tokens=prompt_tokens):
                usage = answer.usage_object(Usage(prompt_tokens=prompt_tokens))
                data = sse("message_start", message=answer.message(self._request, usage=usage))
            case Finished():
                data = self._finish(event)
            case Failed(error):
                data = errors.event(error)
        return data

    def keep_alive(self) -> bytes:
        return PING

    def _say(self, kind: Literal["text", "thinking"], text: str) -> bytes:
        start = b"" if self._open == kind else self._start(kind, EMPTY[kind])
        return start + self._delta + encode(text) + END

    def _withhold(self, text: str) -> bytes:
        """Keep a thought for the signature; now and then tell the client that we are alive."""
        start = b"" if self._open == "thinking" else self._start("thinking", EMPTY["thinking"])
        self._thoughts.append(text)
        return start or (PING if len(self._thoughts) % WITHHELD_PER_PING == 0 else b"")

    def _start(self, kind: Kind, block: dict[str, Any]) -> bytes:
        """Open the next block, once the last is closed."""
        closed = self._close()
        self._open = kind
        self._index += 1
        head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d'
        self._delta = head % self._index + DELTAS[kind]
        return closed + sse("content_block_start", index=self._index, content_block=block)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        signed = b""
        if self._open == "thinking":
            delta = {"type": "signature_delta", "signature": sign("".join(self._thoughts))}
            signed = sse("content_block_delta", index=self._index, delta=delta)
            self._thoughts.clear()
        self._open = None
        return signed + sse("content_block_stop", index=self._index)

    def _finish(self, event: Finished) -> bytes:
        delta = answer.stop(event, has_calls=self._has_calls)
        usage = answer.usage_object(event.usage)
        last = sse("message_delta", delta=delta, usage=usage) + sse("message_stop")
        return self._close() + last


def sse(kind: str, **more: Any) -> bytes:
    """Render an event."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), encode({"type": kind, **more}))
