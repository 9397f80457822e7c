"""A body to a request."""

from __future__ import annotations

from cortex.chat.request import ChatRequest, JsonFormat, Reasoning, Sampling
from cortex.dialects.anthropic_messages.content import read_system, read_turns, required
from cortex.dialects.anthropic_messages.tools import read_choice, read_tools
from cortex.dialects.anthropic_messages.wire import OutputConfig, WireRequest, WireThinking
from cortex.errors import UnsupportedParameter


def read_request(wire: WireRequest, request_id: str) -> ChatRequest:
    """Return what a body asks for; `private` tells whether the client wants no thinking shown."""
    if wire.mcp_servers:
        raise UnsupportedParameter("mcp_servers is not supported", param="mcp_servers")
    tools = tuple(read_tools(wire.tools or (), wire.messages))
    output = wire.output_config or OutputConfig()
    return ChatRequest(
        id=request_id,
        model=wire.model,
        messages=(*read_system(wire.system, "system"), *read_turns(wire.messages)),
        sampling=Sampling(
            temperature=wire.temperature,
            top_p=wire.top_p,
            top_k=wire.top_k,
            max_tokens=wire.max_tokens,
            stop=tuple(wire.stop_sequences or ()),
        ),
        tools=tools,
        tool_choice=read_choice(wire.tool_choice, tools),
        format=read_format(wire, output),
        reasoning=read_reasoning(wire.thinking, output.effort),
        stream=bool(wire.stream),
        private=wire.thinking is not None and wire.thinking.display == "omitted",
    )


def read_format(wire: WireRequest, output: OutputConfig) -> JsonFormat | None:
    """Read the form the answer must have."""
    wanted, where = output.format, "output_config.format"
    if wanted is None:
        wanted, where = wire.output_format, "output_format"
    if wanted is None:
        return None
    if wanted.type != "json_schema":
        raise UnsupportedParameter(
            f"{where}.type: {wanted.type!r} is not supported, only 'json_schema' is",
            param=f"{where}.type",
        )
    return JsonFormat(schema=required(wanted.schema, where, "schema"))


def read_reasoning(thinking: WireThinking | None, asked: str | None) -> Reasoning:
    """Read how much to think."""
    effort = "high" if asked in ("xhigh", "max") else asked
    if thinking is None:
        return Reasoning(effort=effort)
    if thinking.type == "disabled":
        return Reasoning(enabled=False, effort=effort)
    if thinking.type == "enabled":
        required(thinking.budget_tokens, "thinking", "budget_tokens")
    return Reasoning(enabled=True, effort=effort, budget_tokens=thinking.budget_tokens)
