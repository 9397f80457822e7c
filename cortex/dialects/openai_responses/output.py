"""The items of an answer's output: how each begins, grows and ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import msgspec

from cortex.chat.events import TokenLogprob, ToolCallStarted
from cortex.chat.request import Tool
from cortex.dialects.openai_responses.response import item_id, logprob_object
from cortex.dialects.signature import sign
from cortex.wire import encode

Status = Literal["in_progress", "completed", "incomplete"]
Event = tuple[str, dict[str, Any]]  # its type without "response.", and its fields


class OutputItem(ABC):
    """
    An item that grows.

    Attributes:
        prefix: Of its id.
        grows: The event that brings a piece of it.
        part: The place of that piece in the item.
    """

    prefix: ClassVar[str]
    grows: ClassVar[str]
    part: ClassVar[dict[str, int]] = {}

    def __init__(self, request_id: str, index: int) -> None:
        self.id = item_id(self.prefix, request_id, index)
        self._index = index
        self._at: dict[str, Any] = {"item_id": self.id, "output_index": index, **self.part}
        self._pieces: list[str] = []
        head = encode({"type": self.grows, **self._at})[:-1]
        self._head = b'event: %b\ndata: %b,"delta":' % (self.grows.encode(), head)

    @property
    def whole(self) -> str:
        """All that came."""
        return "".join(self._pieces)

    def grow(self, piece: str, logprobs: tuple[TokenLogprob, ...] = ()) -> bytes:  # noqa: ARG002
        """Take a piece; return its event as far as the number, or nothing yet."""
        self._pieces.append(piece)
        return self._head + encode(piece)

    def begin(self) -> list[Event]:
        """Return the events before the first piece."""
        return [self._event("output_item.added", "in_progress")]

    def end(self, status: Status) -> list[Event]:
        """Return the events after the last piece."""
        return [*self._ending(), self._event("output_item.done", status)]

    @abstractmethod
    def shown(self, status: Status) -> dict[str, Any]:
        """Return the item as it is now."""

    @abstractmethod
    def _ending(self) -> list[Event]:
        """Return what comes between the last piece and ``output_item.done``."""

    def _event(self, name: str, status: Status) -> Event:
        return name, {"output_index": self._index, "item": self.shown(status)}


class MessageItem(OutputItem):
    """Text."""

    prefix = "msg"
    grows = "response.output_text.delta"
    part: ClassVar[dict[str, int]] = {"content_index": 0}

    def __init__(self, request_id: str, index: int) -> None:
        super().__init__(request_id, index)
        self._logprobs: list[dict[str, Any]] = []

    def grow(self, piece: str, logprobs: tuple[TokenLogprob, ...] = ()) -> bytes:
        data = super().grow(piece)
        if not logprobs:
            return data + b',"logprobs":[]'
        rendered = [logprob_object(token) for token in logprobs]
        self._logprobs += rendered
        return data + b',"logprobs":' + encode(rendered)

    def begin(self) -> list[Event]:
        return [*super().begin(), ("content_part.added", {**self._at, "part": self._part()})]

    def shown(self, status: Status) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self._part()]
        return {
            "id": self.id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _ending(self) -> list[Event]:
        text = {**self._at, "text": self.whole, "logprobs": self._logprobs}
        return [
            ("output_text.done", text),
            ("content_part.done", {**self._at, "part": self._part()}),
        ]

    def _part(self) -> dict[str, Any]:
        return {
            "type": "output_text",
            "annotations": [],
            "logprobs": self._logprobs,
            "text": self.whole,
        }


class ReasoningItem(OutputItem):
    """What the model thinks before it answers."""

    prefix = "rs"
    grows = "response.reasoning_text.delta"
    part: ClassVar[dict[str, int]] = {"content_index": 0}

    def __init__(self, request_id: str, index: int, *, packs: bool) -> None:
        super().__init__(request_id, index)
        self._packs = packs

    def begin(self) -> list[Event]:
        return [*super().begin(), ("content_part.added", {**self._at, "part": self._part()})]

    def shown(self, status: Status) -> dict[str, Any]:
        item = {"id": self.id, "type": "reasoning", "status": status, "summary": []}
        if status == "in_progress":
            return {**item, "content": []}
        packed = {"encrypted_content": sign(self.whole)} if self._packs else {}
        return {**item, "content": [self._part()], **packed}

    def _ending(self) -> list[Event]:
        return [
            ("reasoning_text.done", {**self._at, "text": self.whole}),
            ("content_part.done", {**self._at, "part": self._part()}),
        ]

    def _part(self) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": self.whole}


class CallItem(OutputItem):
    """A call of a function; with `tool` it is known what the client calls it."""

    prefix = "fc"
    grows = "response.function_call_arguments.delta"

    def __init__(
        self, request_id: str, index: int, call: ToolCallStarted, tool: Tool | None
    ) -> None:
        super().__init__(request_id, index)
        group = tool.namespace if tool is not None else None
        self._call: dict[str, Any] = {"call_id": call.id, "name": call.name}
        if group is not None:
            self._call |= {"name": call.name.removeprefix(f"{group}__"), "namespace": group}

    def shown(self, status: Status) -> dict[str, Any]:
        item = {"id": self.id, "type": "function_call", "status": status, **self._call}
        return {**item, "arguments": "" if status == "in_progress" else self.whole or "{}"}

    def _ending(self) -> list[Event]:
        done = {**self._at, "name": self._call["name"], "arguments": self.whole or "{}"}
        said: list[Event] = [("function_call_arguments.done", done)]
        if not self.whole:
            said.insert(0, ("function_call_arguments.delta", {**self._at, "delta": "{}"}))
        return said


class CustomCallItem(CallItem):
    """A call of a tool that takes free text; that comes at once, out of its JSON."""

    prefix = "ctc"
    grows = "response.custom_tool_call_input.delta"

    def grow(self, piece: str, logprobs: tuple[TokenLogprob, ...] = ()) -> bytes:
        super().grow(piece, logprobs)
        return b""

    def shown(self, status: Status) -> dict[str, Any]:
        item = {"id": self.id, "type": "custom_tool_call", "status": status, **self._call}
        return {**item, "input": "" if status == "in_progress" else self._input}

    @property
    def _input(self) -> str:
        """The text; of what is no ``{"input": string}``, all of it."""
        try:
            return msgspec.json.decode(self.whole, type=FreeText).input
        except msgspec.DecodeError:
            return self.whole

    def _ending(self) -> list[Event]:
        return [
            ("custom_tool_call_input.delta", {**self._at, "delta": self._input}),
            ("custom_tool_call_input.done", {**self._at, "input": self._input}),
        ]


class FreeText(msgspec.Struct):
    """The arguments of a custom tool."""

    input: str
