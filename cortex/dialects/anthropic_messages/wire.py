"""What a body of ``POST /v1/messages`` holds; what is not named here is ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from cortex.chat.request import MAX_STOPS

Name = Annotated[str, msgspec.Meta(min_length=1)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]


class Source(msgspec.Struct):
    """Where an image or a document comes from."""

    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    content: str | list[Block] | None = None


class Block(msgspec.Struct):
    """A block of content, of any type: each has some of these fields."""

    type: str
    text: str | None = None
    source: Source | str | None = None
    title: str | None = None
    context: str | None = None
    citations: Any = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: Name | None = None
    name: Name | None = None
    input: dict[str, Any] | None = None
    tool_use_id: Name | None = None
    tool_name: str | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None


class WireMessage(msgspec.Struct):
    """An element of ``messages``."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class WireTool(msgspec.Struct):
    """An element of ``tools``."""

    name: Name | None = None
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: bool | None = None


class WireToolChoice(msgspec.Struct):
    """``tool_choice``."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class WireThinking(msgspec.Struct):
    """``thinking``."""

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: Positive | None = None
    display: Literal["summarized", "omitted"] | None = None


class WireFormat(msgspec.Struct):
    """``output_config.format``, or the older ``output_format``."""

    type: str
    schema: dict[str, Any] | None = None


class OutputConfig(msgspec.Struct):
    """``output_config``."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: WireFormat | None = None


class Metadata(msgspec.Struct):
    """``metadata``."""

    user_id: str | None = None


class WireRequest(msgspec.Struct):
    """The body of ``POST /v1/messages``, and of a count, which has no ``max_tokens``."""

    model: Name
    messages: Annotated[list[WireMessage], msgspec.Meta(min_length=1)]
    max_tokens: Positive | None = None
    system: str | list[Block] | None = None
    stream: bool | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0)] | None = None
    stop_sequences: Annotated[list[Name], msgspec.Meta(max_length=MAX_STOPS)] | None = None
    tools: list[WireTool] | None = None
    tool_choice: WireToolChoice | None = None
    thinking: WireThinking | None = None
    output_config: OutputConfig | None = None
    output_format: WireFormat | None = None
    metadata: Metadata | None = None
    mcp_servers: list[Any] | None = None
