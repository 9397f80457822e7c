"""
The turns of a request: blocks to parts.

Adjacent texts are joined, with a newline but for the model's own: a client that replays the blocks
of a turn as one string joins them so, and the prompt must stay the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TypeVar

from cortex.chat.request import Image, Message, Part, Text, Thinking, ToolCall, ToolResult
from cortex.dialects.anthropic_messages.wire import Block, Source, WireMessage
from cortex.dialects.signature import carried_by
from cortex.errors import InvalidRequest, MissingParameter, UnsupportedParameter
from cortex.wire import encode

BILLING = "x-anthropic-billing-header:"  # a line of Claude Code's that changes between sessions
URLS = ("http://", "https://", "data:image/")
Content = str | list[Block] | None
Placed = tuple[str, Block]  # a block and the path to it
T = TypeVar("T")


def read_system(content: Content, where: str) -> Iterator[Message]:
    """Yield the system turn, unless there is nothing in it."""
    if parts := system_parts(blocks(content, where)):
        yield Message(role="system", parts=parts)


def read_turns(turns: Sequence[WireMessage]) -> Iterator[Message]:
    """Yield the turns; adjacent ones of one role are one, results of tools come before the rest."""
    for role, adjacent in groupby(enumerate(turns), key=lambda each: each[1].role):
        placed = [
            found
            for index, turn in adjacent
            for found in blocks(turn.content, f"messages[{index}].content")
        ]
        match role:
            case "system":
                if parts := system_parts(placed):
                    yield Message(role="system", parts=parts)
            case "assistant":
                yield Message(role="assistant", parts=joined(assistant_parts(placed), ""))
            case _:
                yield from user_turns(placed)


def blocks(content: Content, where: str) -> list[Placed]:
    """Return the blocks of some content; a string is one of text."""
    if isinstance(content, str):
        return [(where, Block(type="text", text=content))]
    return [(f"{where}[{index}]", block) for index, block in enumerate(content or ())]


def system_parts(placed: Sequence[Placed]) -> tuple[Part, ...]:
    """Read instructions, without Claude Code's billing line."""
    texts = []
    for where, block in placed:
        if block.type != "text":
            raise unsupported(where, block)
        text = required(block.text, where, "text")
        texts.append(text.partition("\n")[2] if text.startswith(BILLING) else text)
    return joined(map(Text, texts))


def assistant_parts(placed: Sequence[Placed]) -> Iterator[Part]:
    """Read what the model said."""
    for where, block in placed:
        match block.type:
            case "text":
                yield Text(required(block.text, where, "text"))
            case "thinking":
                thought = required(block.thinking, where, "thinking")
                if thought := thought or carried_by(block.signature or ""):
                    yield Thinking(thought)
            case "redacted_thinking":
                if thought := carried_by(required(block.data, where, "data")):
                    yield Thinking(thought)
            case "tool_use":
                yield ToolCall(
                    id=required(block.id, where, "id"),
                    name=required(block.name, where, "name"),
                    arguments=encode(required(block.input, where, "input")).decode(),
                )
            case _:
                raise unsupported(where, block)


def user_turns(placed: Sequence[Placed]) -> Iterator[Message]:
    """Yield a turn for each result of a tool, then the rest of a user's turn, if there is any."""
    results = [each for each in placed if each[1].type == "tool_result"]
    for where, block in results:
        result = ToolResult(
            call_id=required(block.tool_use_id, where, "tool_use_id"),
            parts=tuple(
                part
                for part in user_parts(blocks(block.content, f"{where}.content"))
                if isinstance(part, Text | Image)
            ),
            is_error=bool(block.is_error),
        )
        yield Message(role="tool", parts=(result,))
    rest = user_parts([each for each in placed if each[1].type != "tool_result"])
    if rest or not results:
        yield Message(role="user", parts=rest)


def user_parts(placed: Sequence[Placed]) -> tuple[Part, ...]:
    """Read what a user, or a tool, shows to the model."""
    return joined(part for where, block in placed for part in shown(block, where))


def shown(block: Block, where: str) -> Iterator[Text | Image]:
    """Yield the parts of a block."""
    match block.type:
        case "document":
            yield from document(block, where)
        case "search_result":
            source = block.source if isinstance(block.source, str) else ""
            yield from map(Text, filter(None, (block.title, source)))
            yield from leaves(block.content, f"{where}.content")
        case "tool_reference":
            name = required(block.tool_name, where, "tool_name")
            yield Text(f"The tool {name} can be called now.")
        case _:
            yield leaf(block, where)


def leaves(content: Content, where: str) -> Iterator[Text | Image]:
    """Yield the parts of what may stand inside a document."""
    for at, block in blocks(content, where):
        yield leaf(block, at)


def leaf(block: Block, where: str) -> Text | Image:
    """Read a text or an image."""
    match block.type:
        case "text":
            return Text(required(block.text, where, "text"))
        case "image":
            return image(block, where)
        case _:
            raise unsupported(where, block)


def image(block: Block, where: str) -> Image:
    """Read an image."""
    at = f"{where}.source"
    match required(block.source, where, "source"):
        case Source(type="base64") as source:
            kind = required(source.media_type, at, "media_type")
            if not kind.startswith("image/"):
                raise InvalidRequest(
                    f"{at}.media_type: {kind!r} is no image", param=f"{at}.media_type"
                )
            return Image(url=f"data:{kind};base64,{required(source.data, at, 'data')}")
        case Source(type="url") as source:
            url = required(source.url, at, "url")
            if not url.startswith(URLS):
                raise InvalidRequest(
                    f"{at}.url: expected http://, https:// or data:image/", param=f"{at}.url"
                )
            return Image(url=url)
        case _:
            raise refused(block, where)


def document(block: Block, where: str) -> Iterator[Text | Image]:
    """Yield the title, the context and the contents of a document."""
    if isinstance(block.citations, dict) and block.citations.get("enabled"):
        param = f"{where}.citations"
        raise UnsupportedParameter(f"{param}: citations are not supported", param=param)
    yield from map(Text, filter(None, (block.title, block.context)))
    at = f"{where}.source"
    match required(block.source, where, "source"):
        case Source(type="text") as source:
            yield Text(required(source.data, at, "data"))
        case Source(type="content") as source:
            yield from leaves(source.content, f"{at}.content")
        case _:
            raise refused(block, where)


def joined(parts: Iterable[Part], between: str = "\n") -> tuple[Part, ...]:
    """Join adjacent texts; empty ones go."""
    found: list[Part] = []
    for part in parts:
        if part == Text(""):
            continue
        if isinstance(part, Text) and found and isinstance(before := found[-1], Text):
            found[-1] = Text(f"{before.text}{between}{part.text}")
        else:
            found.append(part)
    return tuple(found)


def required(value: T | None, where: str, field: str) -> T:
    """Return the value of a field, which must be there."""
    if value is None:
        raise MissingParameter(f"{where}.{field} is required", param=f"{where}.{field}")
    return value


def unsupported(where: str, block: Block) -> UnsupportedParameter:
    """Return the error for a block that cannot be honoured where it is."""
    return UnsupportedParameter(
        f"{where}: content of type {block.type!r} is not supported here", param=where
    )


def refused(block: Block, where: str) -> UnsupportedParameter:
    """Return the error for an image or document whose source cannot be read."""
    source = block.source if isinstance(block.source, Source) else Source(type="string")
    media = f" ({source.media_type})" if source.media_type else ""
    return UnsupportedParameter(
        f"{where}: a source of type {source.type!r}{media} is not supported for a block of type"
        f" {block.type!r}",
        param=where,
    )
