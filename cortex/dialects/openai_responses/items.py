"""The items of a Responses request, read as the turns of a conversation."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from cortex.chat.request import Image, Message, Part, Role, Text, Thinking, ToolCall, ToolResult
from cortex.dialects.openai_responses.tools import joined
from cortex.dialects.openai_responses.wire import Content, WireItem, WirePart
from cortex.dialects.signature import carried_by
from cortex.errors import InvalidRequest, MissingParameter, UnsupportedParameter
from cortex.wire import encode, explain

ROLES: dict[str | None, Role] = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}
IMAGE_URL = re.compile(r"https?://|data:[^,]*;base64,", re.IGNORECASE)
TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


def parse_input(given: str | Sequence[WireItem]) -> Iterator[Message]:
    """Yield the turns of a conversation; what an assistant did in a row is one turn."""
    if isinstance(given, str):
        yield Message(role="user", parts=(Text(given),))
        return
    said: list[Part] = []
    for number, item in enumerate(given):
        role, parts = parse_item(item, f"input[{number}]")
        if role == "assistant":
            said += parts
            continue
        if said:
            yield Message(role="assistant", parts=tuple(said))
            said = []
        yield Message(role=role, parts=tuple(parts))
    if said:
        yield Message(role="assistant", parts=tuple(said))


def parse_item(item: WireItem, at: str) -> tuple[Role, list[Part]]:
    """Read one item: whose it is, and what it adds to a turn."""
    match item.kind:
        case "message":
            return parse_message(item, at)
        case "function_call":
            return "assistant", [parse_call(item, item.arguments or "", at)]
        case "custom_tool_call":
            arguments = encode({"input": needed(item.input, f"{at}.input")}).decode()
            return "assistant", [parse_call(item, arguments, at)]
        case "function_call_output" | "custom_tool_call_output":
            call_id = needed(item.call_id, f"{at}.call_id")
            parts = parse_content(read_output(item.output, f"{at}.output"), f"{at}.output")
            return "tool", [ToolResult(call_id=call_id, parts=tuple(parts))]
        case "reasoning":
            thought = read_thought(item)
            return "assistant", [Thinking(thought)] if thought else []
        case "item_reference":
            raise InvalidRequest(f"{at}.id: no item {item.id!r} is kept", param=f"{at}.id")
    raise UnsupportedParameter(
        f"{at}.type: items of type {item.type!r} are not supported", param=f"{at}.type"
    )


def parse_message(item: WireItem, at: str) -> tuple[Role, list[Part]]:
    """Read a message, in any of its forms."""
    role = ROLES.get(needed(item.role, f"{at}.role"))
    if role is None:
        raise InvalidRequest(f"{at}.role: invalid value {item.role!r}", param=f"{at}.role")
    if item.content is None and role != "assistant":
        raise MissingParameter(f"{at}.content is required", param=f"{at}.content")
    return role, [*parse_content(item.content, f"{at}.content")]


def parse_call(item: WireItem, arguments: str, at: str) -> ToolCall:
    """Read a call of an earlier turn."""
    name = joined(item.namespace, needed(item.name, f"{at}.name"))
    return ToolCall(id=needed(item.call_id, f"{at}.call_id"), name=name, arguments=arguments)


def read_output(output: Any, at: str) -> Content:
    """Read the output of a call: a string or content."""
    try:
        content: Content = msgspec.convert(output, Content)
    except msgspec.ValidationError as error:
        said = explain(str(error))
        inner = f"{at}{said.param or ''}"  # of an array, so it begins with an index
        raise InvalidRequest(f"{inner}: {said.message.partition(': ')[2]}", param=inner) from None
    return content


def read_thought(item: WireItem) -> str:
    """Return what was thought: as it was, as we packed it, or in short."""
    shown = item.content if isinstance(item.content, list) else []
    thought = "\n".join(part.text or "" for part in shown)
    thought = thought or carried_by(item.encrypted_content or "")
    return thought or "\n\n".join(part.text or "" for part in item.summary or [])


def parse_content(content: Content, at: str) -> Iterator[Text | Image]:
    """Read content; a string and an array read alike, and empty text is none."""
    if isinstance(content, str):
        content = [WirePart(type="input_text", text=content)]
    parts = (parse_part(part, f"{at}[{number}]") for number, part in enumerate(content or []))
    yield from (part for part in parts if part != Text(""))


def parse_part(part: WirePart, at: str) -> Text | Image:
    """Read an element of a content array."""
    if part.type in TEXTS:
        return Text(needed(part.text, f"{at}.text"))
    match part.type:
        case "refusal":
            return Text(needed(part.refusal, f"{at}.refusal"))
        case "input_image":
            refuse_file(part.file_id, f"{at}.file_id")
            url = needed(part.image_url, f"{at}.image_url")
            if not IMAGE_URL.match(url):
                where = f"{at}.image_url"
                raise InvalidRequest(
                    f"{where}: expected http(s):// or a data: URI with base64", param=where
                )
            return Image(url=url, detail=part.detail)
        case "input_file":
            refuse_file(part.file_id, f"{at}.file_id")
            refuse_file(part.file_url, f"{at}.file_url")
            return read_file(part, f"{at}.file_data")
    raise UnsupportedParameter(f"{at}: content of type {part.type!r} is not supported", param=at)


def refuse_file(reference: str | None, at: str) -> None:
    """Raise for a reference to a file."""
    if reference is not None:
        raise UnsupportedParameter(f"{at}: no files are kept or fetched here", param=at)


def read_file(part: WirePart, at: str) -> Text:
    """Return the text of a file, its name before it."""
    data = needed(part.file_data, at).rpartition(";base64,")[2]
    try:
        text = b64decode(data, validate=True).decode()
    except ValueError:  # of the base64, or of the UTF-8
        text = "\0"
    if "\0" in text:
        raise UnsupportedParameter(
            f"{at}: expected a text file in base64; no other can be read", param=at
        )
    return Text(f"{part.filename}:\n{text}" if part.filename else text)


def needed(value: Any, at: str) -> str:
    """Return a string that has to be there."""
    if value is None:
        raise MissingParameter(f"{at} is required", param=at)
    if not isinstance(value, str):
        raise InvalidRequest(f"{at}: expected a string", param=at)
    return value
