"""The turns of a conversation as a client of the API sends them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import msgspec

from cortex.chat.request import Image, Message, Part, Text, Thinking, ToolCall, ToolResult
from cortex.dialects.signature import sign
from cortex.errors import UnsupportedParameter

DATA_URL = re.compile(r"data:([^;,]+);base64,(.*)", re.DOTALL)


def system_of(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """Return the instructions a conversation begins with, and the rest of it."""
    count = next((n for n, turn in enumerate(messages) if turn.role != "system"), len(messages))
    return "\n".join(filter(None, (turn.text for turn in messages[:count]))), messages[count:]


def turns_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """
    Render the turns; adjacent ones of one role are one, and so is one without content.

    Results of tools are a user's, and come first in their turn.
    """
    turns = []
    for role, adjacent in groupby(messages, key=role_of):
        blocks = [block for turn in adjacent for block in blocks_of(turn.parts)]
        blocks.sort(key=lambda block: block["type"] != "tool_result")
        if blocks:
            turns.append({"role": role, "content": blocks})
    return turns


def role_of(turn: Message) -> str:
    """Return whose turn it is on the wire."""
    return "user" if turn.role == "tool" else turn.role


def blocks_of(parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
    """Yield the blocks of a turn; adjacent texts are one, or a server would put lines between."""
    for is_text, adjacent in groupby(parts, key=lambda part: isinstance(part, Text)):
        if not is_text:
            yield from map(block_of, adjacent)
        elif text := "".join(part.text for part in adjacent if isinstance(part, Text)):
            yield {"type": "text", "text": text}


def block_of(part: Part) -> dict[str, Any]:
    """Render a part."""
    match part:
        case Text(text):
            return {"type": "text", "text": text}
        case Image(url=url):
            return {"type": "image", "source": source_of(url)}
        case Thinking(text):
            return {"type": "thinking", "thinking": text, "signature": sign()}
        case ToolCall():
            call = {"type": "tool_use", "id": part.id, "name": part.name}
            return {**call, "input": input_of(part)}
        case ToolResult():
            result: dict[str, Any] = {"type": "tool_result", "tool_use_id": part.call_id}
            if content := list(blocks_of(part.parts)):
                is_plain = len(content) == 1 and content[0]["type"] == "text"
                result["content"] = content[0]["text"] if is_plain else content
            return {**result, "is_error": True} if part.is_error else result


def source_of(url: str) -> dict[str, str]:
    """Render where an image comes from."""
    if found := DATA_URL.fullmatch(url):
        return {"type": "base64", "media_type": found[1], "data": found[2]}
    if url.startswith("data:"):
        raise UnsupportedParameter("the data of an image are not base64", param="messages")
    return {"type": "url", "url": url}


def input_of(call: ToolCall) -> dict[str, Any]:
    """Return the arguments of a call."""
    try:
        return msgspec.json.decode(call.arguments or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        raise UnsupportedParameter(
            f"the arguments of the call {call.id!r} are no JSON object", param="messages"
        ) from None
