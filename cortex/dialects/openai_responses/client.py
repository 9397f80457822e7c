"""Asks a server for a response."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cortex.api import ReplyDecoder
from cortex.chat.request import (
    ChatRequest,
    Image,
    JsonFormat,
    Message,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolResult,
)
from cortex.dialects.openai import effort_of
from cortex.dialects.openai_errors import read_error
from cortex.dialects.openai_responses.decoder import StreamDecoder
from cortex.dialects.openai_responses.request import LOGPROBS
from cortex.errors import CortexError, UnsupportedParameter
from cortex.wire import encode

UNSAID = (
    *("top_k", "min_p", "repetition_penalty", "seed", "ignore_eos", "stop"),
    *("frequency_penalty", "presence_penalty", "logit_bias"),
)


class OpenAIResponsesClient:
    """The client half; the server keeps nothing, and every tool is a function."""

    path = "/v1/responses"

    def render_request(self, request: ChatRequest) -> bytes:
        refuse_unsaid(request)
        choice = request.tool_choice
        named = choice.name and {"type": "function", "name": choice.name}
        sampling, wanted = request.sampling, request.reasoning
        effort = "none" if wanted.enabled is False else effort_of(wanted)
        fields = {
            "model": request.model,
            "input": [item for turn in request.messages for item in render_turn(turn)],
            "stream": True,
            "store": False,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_output_tokens": sampling.max_tokens,
            "top_logprobs": sampling.logprobs or None,
            "include": None if sampling.logprobs is None else [LOGPROBS],
            "tools": [render_tool(tool) for tool in request.tools] or None,
            "tool_choice": named or (choice.mode if choice.mode != "auto" else None),
            "parallel_tool_calls": None if choice.parallel else False,
            "text": request.format and {"format": render_format(request.format)},
            "reasoning": {"effort": effort} if effort else None,
        }
        return encode({name: value for name, value in fields.items() if value is not None})

    def decoder(self, request: ChatRequest) -> ReplyDecoder:
        return StreamDecoder(request)

    def read_error(self, status: int, body: bytes) -> CortexError:
        return read_error(status, body)


def refuse_unsaid(request: ChatRequest) -> None:
    """Raise for the first thing asked for that a Responses request cannot say."""
    switch = {"enable_thinking": request.reasoning.enabled}
    asked = {name: request.sampling.asks(name) for name in UNSAID}
    asked |= {
        "prompt": bool(request.prompts),
        "n": request.n != 1,
        "chat_template_kwargs": request.template_args not in ({}, switch),
    }
    for param, is_asked in asked.items():
        if is_asked:
            raise UnsupportedParameter(
                f"the server that has the model speaks Responses, which has no {param}", param=param
            )


def render_turn(turn: Message) -> Iterator[dict[str, Any]]:
    """Yield the items of a turn, in order; texts and images in a row are one message."""
    content: list[dict[str, Any]] = []
    is_ours = turn.role == "assistant"
    for part in turn.parts:
        if isinstance(part, Text | Image):
            content.append(render_part(part, "output_text" if is_ours else "input_text"))
            continue
        if content:
            yield {"type": "message", "role": turn.role, "content": content}
            content = []
        yield render_item(part)
    if content or not turn.parts:
        yield {"type": "message", "role": turn.role, "content": content}


def render_item(part: Thinking | ToolCall | ToolResult) -> dict[str, Any]:
    """Render what is no message."""
    match part:
        case Thinking(text):
            content = [{"type": "reasoning_text", "text": text}]
            return {"type": "reasoning", "summary": [], "content": content}
        case ToolCall():
            return {
                "type": "function_call",
                "call_id": part.id,
                "name": part.name,
                "arguments": part.arguments or "{}",
            }
        case ToolResult():
            return {
                "type": "function_call_output",
                "call_id": part.call_id,
                "output": render_output(part),
            }


def render_output(result: ToolResult) -> str | list[dict[str, Any]]:
    """Render what came of a call; an error is one in words."""
    parts = (Text("[tool error] "), *result.parts) if result.is_error else result.parts
    if all(isinstance(part, Text) for part in parts):
        return "".join(part.text for part in parts if isinstance(part, Text))
    return [render_part(part, "input_text") for part in parts]


def render_part(part: Text | Image, kind: str) -> dict[str, Any]:
    """Render a piece of content; *kind* is that of text."""
    if isinstance(part, Text):
        return {"type": kind, "text": part.text}
    return {"type": "input_image", "image_url": part.url, "detail": part.detail or "auto"}


def render_tool(tool: Tool) -> dict[str, Any]:
    """Render a tool; free text is an argument of a function."""
    function = {
        "type": "function",
        "name": tool.name,
        "parameters": tool.parameters or None,
        "strict": tool.strict,
    }
    return {**function, "description": tool.description} if tool.description else function


def render_format(asked: JsonFormat) -> dict[str, Any]:
    """Render what the answer must look like; a schema has to have a name."""
    if asked.schema is None:
        return {"type": "json_object"}
    return {
        "type": "json_schema",
        "name": asked.name or "answer",
        "schema": asked.schema,
        "strict": asked.strict,
        **({"description": asked.description} if asked.description else {}),
    }
