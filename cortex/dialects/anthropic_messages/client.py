"""Asks a server for a message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cortex.api import ReplyDecoder
from cortex.chat.request import ChatRequest, Reasoning, Tool, ToolChoice
from cortex.dialects.anthropic_messages.decoder import StreamDecoder
from cortex.dialects.anthropic_messages.turns import system_of, turns_of
from cortex.dialects.openai_errors import read_error
from cortex.errors import CortexError, UnsupportedParameter
from cortex.wire import encode

MAX_TOKENS = 32_000  # asked for where the client leaves it open: what Claude Code asks for
UNSAID = (
    *("min_p", "repetition_penalty", "seed", "ignore_eos"),
    *("frequency_penalty", "presence_penalty", "logit_bias", "logprobs"),
)
ANY_OBJECT = {"type": "object"}
FREE_TEXT = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
}


class MessagesClient:
    """The client half."""

    path = "/v1/messages"

    def render_request(self, request: ChatRequest) -> bytes:
        refuse_unsaid(request)
        sampling = request.sampling
        system, rest = system_of(request.messages)
        fields = {
            "model": request.model,
            "max_tokens": sampling.max_tokens or MAX_TOKENS,
            "system": system or None,
            "messages": turns_of(rest),
            "stream": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "stop_sequences": sampling.stop or None,
            **render_tools(request.tools, request.tool_choice),
            "thinking": render_thinking(request.reasoning),
            "output_config": render_output(request) or None,
        }
        return encode({name: value for name, value in fields.items() if value is not None})

    def decoder(self, request: ChatRequest) -> ReplyDecoder:
        return StreamDecoder(request)

    def read_error(self, status: int, body: bytes) -> CortexError:
        return read_error(status, body)


def refuse_unsaid(request: ChatRequest) -> None:
    """Raise for the first thing asked for that a message cannot say."""
    sampling, switch = request.sampling, {"enable_thinking": request.reasoning.enabled}
    asked = {name: sampling.asks(name) for name in UNSAID}
    asked |= {
        "prompt": bool(request.prompts),
        "n": request.n != 1,
        "temperature": (sampling.temperature or 0) > 1,
        "chat_template_kwargs": request.template_args not in ({}, switch),
    }
    for param, is_asked in asked.items():
        if is_asked:
            value = " over 1" if param == "temperature" else ""
            raise UnsupportedParameter(
                f"the server that has the model speaks Messages, which has no {param}{value}",
                param=param,
            )


def render_tools(tools: Sequence[Tool], choice: ToolChoice) -> dict[str, Any]:
    """Render the tools and which of them to call."""
    if not tools:
        return {}
    return {
        "tools": [render_tool(tool) for tool in tools],
        "tool_choice": None if choice == ToolChoice() else render_choice(choice),
    }


def render_tool(tool: Tool) -> dict[str, Any]:
    """Render a tool; free text is an argument of a function."""
    schema = tool.parameters or (FREE_TEXT if tool.kind == "custom" else ANY_OBJECT)
    said: dict[str, Any] = {"name": tool.name, "input_schema": schema}
    if tool.description:
        said["description"] = tool.description
    return {**said, "strict": True} if tool.strict else said


def render_choice(choice: ToolChoice) -> dict[str, Any]:
    """Render which tools may or must be called."""
    if choice.mode == "none":
        return {"type": "none"}
    said: dict[str, Any] = {"type": "any" if choice.mode == "required" else "auto"}
    if choice.name is not None:
        said = {"type": "tool", "name": choice.name}
    return said if choice.parallel else {**said, "disable_parallel_tool_use": True}


def render_thinking(wanted: Reasoning) -> dict[str, Any] | None:
    """Render whether to think; the thoughts are wanted in the answer."""
    if wanted.enabled is False or wanted.effort == "none":
        return {"type": "disabled"}
    if wanted.budget_tokens is not None:
        budget = {"type": "enabled", "budget_tokens": wanted.budget_tokens}
        return {**budget, "display": "summarized"}
    return {"type": "adaptive", "display": "summarized"} if wanted.enabled else None


def render_output(request: ChatRequest) -> dict[str, Any]:
    """Render how much effort to take and the form of the answer."""
    said: dict[str, Any] = {}
    effort = request.reasoning.effort
    if effort not in (None, "none"):
        said["effort"] = "low" if effort == "minimal" else effort
    if request.format is not None:
        schema = request.format.schema
        said["format"] = {
            "type": "json_schema",
            "schema": ANY_OBJECT if schema is None else schema,
        }
    return said
