"""
The turns of a chat and its tools.

Ollama's calls may come without an id, and its results with no more than the tool's name: a call
without one gets an id of its place, and a result belongs to the first call that waits for one.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from cortex.chat.request import Image, Message, Part, Text, Thinking, Tool, ToolCall, ToolResult
from cortex.errors import InvalidRequest
from cortex.wire import encode

MAGIC = {"iVBORw": "image/png", "/9j/": "image/jpeg", "R0lGOD": "image/gif", "UklGR": "image/webp"}


class WireFunction(msgspec.Struct):
    """``function`` of a call."""

    name: str
    arguments: dict[str, Any] = {}


class WireCall(msgspec.Struct):
    """An element of ``tool_calls``."""

    function: WireFunction
    id: str = ""


class WireMessage(msgspec.Struct):
    """An element of ``messages``."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[WireCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class WireToolFunction(msgspec.Struct):
    """``function`` of a tool."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


class WireTool(msgspec.Struct):
    """An element of ``tools``."""

    function: WireToolFunction
    type: Literal["function"] = "function"


def parse_tools(tools: Sequence[WireTool]) -> tuple[Tool, ...]:
    """Read ``tools``."""
    return tuple(
        Tool(
            name=tool.function.name,
            description=tool.function.description,
            parameters=tool.function.parameters,
        )
        for tool in tools
    )


def parse_messages(wires: Sequence[WireMessage]) -> tuple[Message, ...]:
    """Read ``messages``."""
    messages, waiting = [], list[ToolCall]()
    for number, wire in enumerate(wires):
        at = f"messages[{number}]"
        seen = parse_images(wire.images or (), at)
        said = (Text(wire.content),) if wire.content else ()
        parts: tuple[Part, ...] = (*seen, *said)
        if wire.role == "tool":
            call_id = answered(wire, waiting) or f"call_{number}"
            parts = (ToolResult(call_id=call_id, parts=(*seen, *said)),)
        elif wire.role == "assistant":
            thought = (Thinking(wire.thinking),) if wire.thinking else ()
            waiting = [
                ToolCall(
                    id=call.id or f"call_{number}_{index}",
                    name=call.function.name,
                    arguments=encode(call.function.arguments).decode(),
                )
                for index, call in enumerate(wire.tool_calls or ())
            ]
            parts = (*thought, *parts, *waiting)
        messages.append(Message(role=wire.role, parts=parts))
    return tuple(messages)


def answered(wire: WireMessage, waiting: list[ToolCall]) -> str | None:
    """Return the id of the call a result belongs to, and take it from those that wait."""
    if wire.tool_call_id:
        waiting[:] = [call for call in waiting if call.id != wire.tool_call_id]
        return wire.tool_call_id
    named = [call for call in waiting if wire.tool_name in (None, call.name)]
    if not named:
        return None
    waiting.remove(named[0])
    return named[0].id


def parse_images(images: Sequence[str], at: str = "") -> tuple[Image, ...]:
    """
    Read ``images``, base64 each.

    Raises:
        InvalidRequest: One is not, or no kind of image we know.
    """
    return tuple(
        Image(url=data_url(data, f"{at}.images[{number}]".lstrip(".")))
        for number, data in enumerate(images)
    )


def data_url(data: str, at: str) -> str:
    """Return an image as a URL; its first bytes say what it is."""
    kind = next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), None)
    try:
        b64decode(data, validate=True)
    except ValueError:
        raise InvalidRequest(f"{at}: expected base64", param=at) from None
    if kind is None:
        raise InvalidRequest(f"{at}: expected a PNG, JPEG, GIF or WebP", param=at)
    return f"data:{kind};base64,{data}"
