"""A Responses request, read."""

from __future__ import annotations

import attrs
import msgspec

from cortex.chat.request import ChatRequest, JsonFormat, Message, Sampling, Text
from cortex.dialects.openai import reasoning
from cortex.dialects.openai_responses.items import parse_input
from cortex.dialects.openai_responses.tools import choose, parse_tools
from cortex.dialects.openai_responses.wire import (
    WireRequest,
    decode_echo,
    decode_request,
)
from cortex.errors import InvalidRequest, MissingParameter, UnsupportedParameter
from cortex.wire import decode

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"


@attrs.frozen(kw_only=True)
class Private:
    """
    What only the encoder needs of a request.

    Attributes:
        echo: The fields an answer repeats.
        packs_reasoning: The client wants what was thought in a form it can send back.
    """

    echo: dict[str, msgspec.Raw]
    packs_reasoning: bool


def parse_request(body: bytes, request_id: str) -> ChatRequest:
    """Read a request; see `cortex.api.ChatDialect`."""
    wire = decode(decode_request, body)
    refuse_unsupported(wire)
    include = wire.include or []
    tools, tool_choice = choose(wire, tuple(parse_tools(wire.tools or [])))
    has_logprobs = LOGPROBS in include or wire.top_logprobs
    return ChatRequest(
        id=request_id,
        model=wire.model,
        messages=parse_messages(wire),
        sampling=Sampling(
            temperature=wire.temperature,
            top_p=wire.top_p,
            max_tokens=wire.max_output_tokens,
            logprobs=(wire.top_logprobs or 0) if has_logprobs else None,
        ),
        tools=tools,
        tool_choice=tool_choice,
        format=parse_format(wire),
        reasoning=reasoning(wire.reasoning.effort if wire.reasoning else None),
        stream=bool(wire.stream),
        private=Private(
            echo=decode(decode_echo, body).fields(), packs_reasoning=ENCRYPTED in include
        ),
    )


def refuse_unsupported(wire: WireRequest) -> None:
    """Raise for a field that asks for what we cannot do."""
    asked = {"background": wire.background, "conversation": wire.conversation}
    for param, is_asked in asked.items():
        if is_asked:
            raise UnsupportedParameter(f"{param} is not supported", param=param)


def parse_messages(wire: WireRequest) -> tuple[Message, ...]:
    """Read instructions and input."""
    messages = tuple(parse_input(wire.input))
    if not messages:
        raise InvalidRequest("input: expected at least one item", param="input")
    if wire.instructions:
        return (Message(role="system", parts=(Text(wire.instructions),)), *messages)
    return messages


def parse_format(wire: WireRequest) -> JsonFormat | None:
    """Read what the answer must look like."""
    asked = wire.text.format if wire.text else None
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return JsonFormat()
    if asked.schema is None:
        raise MissingParameter("text.format.schema is required", param="text.format.schema")
    return JsonFormat(
        schema=asked.schema,
        name=asked.name,
        description=asked.description or "",
        strict=asked.strict is not False,
    )
