"""Events of an answer to bytes: as a stream of events, or as the response that ends it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

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
)
from cortex.chat.request import ChatRequest
from cortex.dialects.openai import error_object
from cortex.dialects.openai_responses.output import (
    CallItem,
    CustomCallItem,
    MessageItem,
    OutputItem,
    ReasoningItem,
    Status,
)
from cortex.dialects.openai_responses.response import INCOMPLETE, finished, response_object
from cortex.errors import CortexError
from cortex.wire import encode


class StreamEncoder:
    """
    Server-sent events, numbered; the last has the whole response.

    Attributes:
        response: As it is now; whole after `Finished`.
    """

    content_type = "text/event-stream"

    def __init__(self, request: ChatRequest, created: int) -> None:
        self.response = response_object(request, created)
        self._request = request
        self._tools = {tool.name: tool for tool in request.tools}
        self._output: list[dict[str, Any]] = []
        self._item: OutputItem | None = None
        self._number = 0

    def feed(self, event: ChatEvent, choice: int = 0) -> bytes:  # noqa: ARG002
        match event:
            case TextDelta(text, logprobs):
                begun = b"" if isinstance(self._item, MessageItem) else self._begin(MessageItem)
                data = begun + self._grow(text, logprobs)
            case ThinkingDelta(text):
                begun = b"" if isinstance(self._item, ReasoningItem) else self._begin(self._thought)
                data = begun + self._grow(text)
            case ToolCallDelta(arguments=arguments):
                data = self._grow(arguments)
            case ToolCallStarted():
                data = self._begin(partial(self._call, event))
            case Started():
                data = self._state("created") + self._state("in_progress")
            case Finished():
                data = self._finish(event)
            case Failed(error):
                data = self._fail(error)
        return data

    def keep_alive(self) -> bytes:
        return b": keep-alive\n\n"

    def _thought(self, request_id: str, index: int) -> OutputItem:
        return ReasoningItem(request_id, index, packs=self._request.private.packs_reasoning)

    def _call(self, call: ToolCallStarted, request_id: str, index: int) -> OutputItem:
        tool = self._tools.get(call.name)
        kind = CustomCallItem if tool is not None and tool.kind == "custom" else CallItem
        return kind(request_id, index, call, tool)

    def _begin(self, make: Callable[[str, int], OutputItem]) -> bytes:
        """End the item that is open, and begin another."""
        closed = self._close("completed")
        self._item = make(self._request.id, len(self._output))
        return closed + b"".join(self._event(*event) for event in self._item.begin())

    def _grow(self, piece: str, logprobs: tuple[TokenLogprob, ...] = ()) -> bytes:
        assert self._item is not None  # noqa: S101 - a piece comes after what it is a piece of
        return self._numbered(self._item.grow(piece, logprobs))

    def _close(self, status: Status) -> bytes:
        item, self._item = self._item, None
        if item is None:
            return b""
        self._output.append(item.shown(status))
        return b"".join(self._event(*event) for event in item.end(status))

    def _finish(self, event: Finished) -> bytes:
        status: Status = "incomplete" if event.reason in INCOMPLETE else "completed"
        closed = self._close(status)
        self.response = finished(self.response, self._output, event.reason, event.usage)
        return closed + self._state(status)

    def _fail(self, error: CortexError) -> bytes:
        """End with what is whole; a client that never saw a beginning gets to see that first."""
        begun = b"" if self._number else self.feed(Started(prompt_tokens=0))
        self.response |= {
            "status": "failed",
            "error": {"code": "server_error", "message": str(error)},
            "output": self._output,
        }
        return begun + self._state("failed")

    def _state(self, name: str) -> bytes:
        return self._event(name, {"response": self.response})

    def _event(self, name: str, fields: dict[str, Any]) -> bytes:
        data = encode({"type": f"response.{name}", **fields})[:-1]
        return self._numbered(b"event: response.%b\ndata: %b" % (name.encode(), data))

    def _numbered(self, event: bytes) -> bytes:
        if not event:
            return b""
        number, self._number = self._number, self._number + 1
        return b'%b,"sequence_number":%d}\n\n' % (event, number)


class BodyEncoder:
    """The response alone, once it is whole."""

    content_type = "application/json"

    def __init__(self, request: ChatRequest, created: int) -> None:
        self._stream = StreamEncoder(request, created)

    def feed(self, event: ChatEvent, choice: int = 0) -> bytes:
        if isinstance(event, Failed):
            return encode({"error": error_object(event.error)})
        self._stream.feed(event, choice)
        return encode(self._stream.response) if isinstance(event, Finished) else b""

    def keep_alive(self) -> bytes:
        return b""
