"""The body of a chat completion request, as msgspec reads it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from cortex.dialects.openai import Effort
from cortex.dialects.openai_sampling import Positive, WireSampling

Name = Annotated[str, msgspec.Meta(min_length=1)]


class WireImage(msgspec.Struct):
    """``image_url`` of a part."""

    url: str
    detail: str | None = None


class WirePart(msgspec.Struct):
    """An element of a content array."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | WireImage | None = None


class CalledFunction(msgspec.Struct):
    """``function`` of a call."""

    name: Name
    arguments: str = ""


class WireCall(msgspec.Struct):
    """An element of an assistant's ``tool_calls``."""

    id: Name
    type: str = "function"
    function: CalledFunction | None = None


class WireMessage(msgspec.Struct):
    """An element of ``messages``."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[WirePart] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[WireCall] | None = None
    tool_call_id: str | None = None
    # Known, and not honoured unless they say nothing.
    function_call: Any = None
    audio: Any = None


class WireFunction(msgspec.Struct):
    """``function`` of a tool."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class WireTool(msgspec.Struct):
    """An element of ``tools``."""

    type: str
    function: WireFunction | None = None


class ChosenFunction(msgspec.Struct):
    """``function`` of a tool choice."""

    name: str


class WireChoice(msgspec.Struct):
    """``tool_choice``, where it is an object."""

    type: str
    function: ChosenFunction | None = None


class WireSchema(msgspec.Struct):
    """``response_format.json_schema``."""

    name: str = ""
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class WireFormat(msgspec.Struct):
    """``response_format``."""

    type: str = "text"
    json_schema: WireSchema | None = None


class WireRequest(WireSampling, kw_only=True):
    """The body of ``POST /v1/chat/completions``."""

    model: Name
    messages: Annotated[list[WireMessage], msgspec.Meta(min_length=1)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    tools: list[WireTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | WireChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: WireFormat | None = None
    reasoning_effort: Effort | None = None
    thinking_token_budget: Annotated[int, msgspec.Meta(ge=0)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # Known, and not honoured unless they say nothing but what is so anyway.
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    audio: Any = None
    modalities: list[str] | None = None


decode_request = msgspec.json.Decoder(WireRequest).decode
