"""Tools and the choice among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cortex.chat.request import Tool, ToolChoice
from cortex.dialects.anthropic_messages.content import blocks, required
from cortex.dialects.anthropic_messages.wire import WireMessage, WireTool, WireToolChoice
from cortex.errors import InvalidRequest, MissingParameter, UnsupportedParameter


def read_tools(tools: Sequence[WireTool], turns: Sequence[WireMessage]) -> Iterator[Tool]:
    """
    Yield the tools the model is to see.

    A deferred one is kept from it until a ``tool_reference`` in the conversation names it.
    """
    found = referenced(turns) if any(tool.defer_loading for tool in tools) else set()
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if tool.type not in (None, "custom"):
            raise UnsupportedParameter(
                f"{where}: a tool of type {tool.type!r} is the vendor's own, only tools of type"
                " 'custom' are supported",
                param=where,
            )
        name = required(tool.name, where, "name")
        schema = required(tool.input_schema, where, "input_schema")
        if tool.defer_loading and name not in found:
            continue
        yield Tool(
            name=name,
            description=tool.description or "",
            parameters=schema,
            strict=bool(tool.strict),
        )


def referenced(turns: Sequence[WireMessage]) -> set[str]:
    """Return the names of the tools that were searched for and found."""
    results = [
        result
        for turn in turns
        for _, block in blocks(turn.content, "")
        if block.type == "tool_result"
        for _, result in blocks(block.content, "")
    ]
    return {result.tool_name for result in results if result.tool_name is not None}


def read_choice(choice: WireToolChoice | None, tools: Sequence[Tool]) -> ToolChoice:
    """Read which of *tools* the model may or must call."""
    if choice is None:
        return ToolChoice()
    is_parallel = not choice.disable_parallel_tool_use
    match choice.type:
        case "auto":
            return ToolChoice(parallel=is_parallel)
        case "none":
            return ToolChoice(mode="none")
        case "any":
            if not tools:
                raise MissingParameter("tools: tool_choice asks for a call of one", param="tools")
            return ToolChoice(mode="required", parallel=is_parallel)
        case "tool":
            name = required(choice.name, "tool_choice", "name")
            if all(tool.name != name for tool in tools):
                raise InvalidRequest(
                    f"tool_choice.name: no tool is called {name!r}", param="tool_choice.name"
                )
            return ToolChoice(mode="required", name=name, parallel=is_parallel)
