"""Asks a server for a chat completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    ToolChoice,
    ToolResult,
)
from cortex.chat.turns import normalised
from cortex.dialects.openai import effort_of
from cortex.dialects.openai_chat.decoder import StreamDecoder
from cortex.dialects.openai_errors import read_error
from cortex.errors import CortexError, UnsupportedParameter
from cortex.wire import encode

FREE_TEXT = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
}


class OpenAIChatClient:
    """
    The client half.

    What no two servers agree on is asked for as vLLM and SGLang understand it; others ignore it.
    """

    path = "/v1/chat/completions"

    def render_request(self, request: ChatRequest) -> bytes:
        if request.prompts:
            raise UnsupportedParameter(
                "the server that has the model takes messages, not a bare prompt", param="prompt"
            )
        messages = [row for turn in normalised(request.messages) for row in render_turn(turn)]
        fields = {
            "model": request.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            **render_sampling(request),
            **render_tools(request.tools, request.tool_choice),
            "response_format": request.format and render_format(request.format),
            **render_reasoning(request),
            **render_going_on(messages),
        }
        return encode({name: value for name, value in fields.items() if value is not None})

    def decoder(self, request: ChatRequest) -> ReplyDecoder:
        return StreamDecoder(request)

    def read_error(self, status: int, body: bytes) -> CortexError:
        return read_error(status, body)


def render_turn(turn: Message) -> list[dict[str, Any]]:
    """Render one turn; each result of a tool is a message of its own."""
    if turn.role == "tool":
        return [
            {"role": "tool", "tool_call_id": part.call_id, "content": part.text}
            for part in turn.parts
            if isinstance(part, ToolResult)
        ]
    message: dict[str, Any] = {"role": turn.role, "content": render_content(turn)}
    if thought := "".join(part.text for part in turn.parts if isinstance(part, Thinking)):
        message["reasoning_content"] = thought
    if calls := [render_call(part) for part in turn.parts if isinstance(part, ToolCall)]:
        message["tool_calls"] = calls
        message["content"] = message["content"] or None
    return [message]


def render_going_on(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tell servers that would answer anew to go on from an answer that was begun."""
    if not messages or messages[-1]["role"] != "assistant" or "tool_calls" in messages[-1]:
        return {}
    return {"continue_final_message": True, "add_generation_prompt": False}


def render_content(turn: Message) -> str | list[dict[str, Any]]:
    """Render text and images; text alone is a string, which every server takes."""
    if not any(isinstance(part, Image) for part in turn.parts):
        return turn.text
    return [render_part(part) for part in turn.parts if isinstance(part, Text | Image)]


def render_part(part: Text | Image) -> dict[str, Any]:
    """Render a piece of text or an image."""
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    detail = {"detail": part.detail} if part.detail else {}
    return {"type": "image_url", "image_url": {"url": part.url, **detail}}


def render_call(call: ToolCall) -> dict[str, Any]:
    """Render a call of an earlier turn; no arguments are an empty object."""
    function = {"name": call.name, "arguments": call.arguments or "{}"}
    return {"id": call.id, "type": "function", "function": function}


def render_sampling(request: ChatRequest) -> dict[str, Any]:
    """Render how to pick tokens; what is left open stays so."""
    sampling = request.sampling
    bias = {str(token): value for token, value in sampling.logit_bias.items()}
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "repeat_penalty": sampling.repetition_penalty,  # what llama.cpp calls it
        "seed": sampling.seed,
        "ignore_eos": sampling.ignore_eos or None,
        "max_tokens": sampling.max_tokens,
        "stop": sampling.stop or None,
        "frequency_penalty": sampling.frequency_penalty or None,
        "presence_penalty": sampling.presence_penalty or None,
        "logit_bias": bias or None,
        "n": request.n if request.n > 1 else None,
        "logprobs": True if sampling.logprobs is not None else None,
        "top_logprobs": sampling.logprobs or None,
    }


def render_tools(tools: Sequence[Tool], choice: ToolChoice) -> dict[str, Any]:
    """Render the tools and which of them to call; free text is an argument of a function."""
    if not tools:
        return {}
    asked: object = choice.mode if choice.mode != "auto" else None
    if choice.name is not None:
        asked = {"type": "function", "function": {"name": choice.name}}
    return {
        "tools": [{"type": "function", "function": render_tool(tool)} for tool in tools],
        "tool_choice": asked,
        "parallel_tool_calls": None if choice.parallel else False,
    }


def render_tool(tool: Tool) -> dict[str, Any]:
    """Render a tool."""
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if parameters := tool.parameters or (FREE_TEXT if tool.kind == "custom" else None):
        function["parameters"] = parameters
    return {**function, "strict": True} if tool.strict else function


def render_format(asked: JsonFormat) -> dict[str, Any]:
    """Render what the answer must look like; a schema has to have a name."""
    if asked.schema is None:
        return {"type": "json_object"}
    schema = {"name": asked.name or "answer", "schema": asked.schema, "strict": asked.strict}
    if asked.description:
        schema["description"] = asked.description
    return {"type": "json_schema", "json_schema": schema}


def render_reasoning(request: ChatRequest) -> dict[str, Any]:
    """Render how much to think; templates know a switch, servers an effort and a budget."""
    wanted, arguments = request.reasoning, dict(request.template_args)
    if wanted.enabled is not None:
        arguments.setdefault("enable_thinking", wanted.enabled)
    return {
        "reasoning_effort": effort_of(wanted),
        "thinking_token_budget": wanted.budget_tokens,
        "chat_template_kwargs": arguments or None,
    }
