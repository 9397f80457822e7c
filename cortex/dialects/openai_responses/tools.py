"""The tools of a Responses request, and which of them to call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cortex.chat.request import Tool, ToolChoice
from cortex.dialects.openai_responses.wire import WireNamed, WireRequest, WireTool
from cortex.errors import InvalidRequest, MissingParameter, UnsupportedParameter

FREE_TEXT = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
CALLABLE = ("function", "custom")


def parse_tools(tools: Sequence[WireTool], at: str = "tools") -> Iterator[Tool]:
    """
    Read tools; those of a namespace get names of their own.

    Of the other types a server runs each itself: we run none, and leave them out.
    """
    for number, tool in enumerate(tools):
        where = f"{at}[{number}]"
        if tool.type == "namespace":
            group = _name(tool, where)
            for inner in parse_tools(tool.tools or [], f"{where}.tools"):
                yield _grouped(inner, group)
        elif tool.type in CALLABLE:
            yield _parse_tool(tool, where)


def _name(tool: WireTool, at: str) -> str:
    if not tool.name:
        raise MissingParameter(f"{at}.name is required", param=f"{at}.name")
    return tool.name


def _parse_tool(tool: WireTool, at: str) -> Tool:
    description = tool.description or ""
    if tool.type == "function":
        return Tool(
            name=_name(tool, at),
            description=description,
            parameters=tool.parameters or {},
            strict=bool(tool.strict),
        )
    if tool.format is not None and tool.format.type == "grammar":
        grammar = f"The input follows this {tool.format.syntax} grammar:\n{tool.format.definition}"
        description = f"{description}\n\n{grammar}".lstrip()
    return Tool(name=_name(tool, at), description=description, parameters=FREE_TEXT, kind="custom")


def _grouped(tool: Tool, group: str) -> Tool:
    if tool.namespace is not None:
        raise UnsupportedParameter("a namespace in a namespace is not supported", param="tools")
    return Tool(
        name=joined(group, tool.name),
        description=tool.description,
        parameters=tool.parameters,
        strict=tool.strict,
        kind=tool.kind,
        namespace=group,
    )


def joined(namespace: str | None, name: str) -> str:
    """Return the name of a tool of a namespace."""
    return f"{namespace}__{name}" if namespace else name


def choose(wire: WireRequest, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], ToolChoice]:
    """Return the tools the model may call, and how it may."""
    parallel = wire.parallel_tool_calls is not False
    choice = wire.tool_choice or "auto"
    if isinstance(choice, str):
        mode, name = choice, None
    elif choice.type == "allowed_tools":
        allowed = {_named(tool, tools, "tool_choice.tools") for tool in _ours(choice.tools)}
        tools, mode, name = tuple(t for t in tools if t.name in allowed), choice.mode, None
    elif choice.type in CALLABLE:
        mode, name = "required", _named(choice, tools, "tool_choice")
    else:
        raise UnsupportedParameter(
            f"tool_choice of type {choice.type!r} is not supported", param="tool_choice.type"
        )
    if mode == "required" and not tools:
        raise InvalidRequest(
            "tool_choice asks for a call, and there is nothing to call", param="tool_choice"
        )
    return tools, ToolChoice(mode=mode, name=name, parallel=parallel)


def _ours(named: Sequence[WireNamed]) -> Iterator[WireNamed]:
    return (tool for tool in named if tool.type in CALLABLE)


def _named(choice: WireNamed, tools: Sequence[Tool], at: str) -> str:
    name = joined(choice.namespace, choice.name or "")
    if not any(tool.name == name for tool in tools):
        raise InvalidRequest(f"{at}.name: no tool is called {name!r}", param=f"{at}.name")
    return name
