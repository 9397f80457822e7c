"""A chat completion request, read."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cortex.chat.request import (
    ChatRequest,
    Image,
    JsonFormat,
    Message,
    Part,
    Reasoning,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from cortex.dialects.openai import reasoning
from cortex.dialects.openai_chat.wire import (
    WireCall,
    WireMessage,
    WirePart,
    WireRequest,
    WireTool,
    decode_request,
)
from cortex.errors import InvalidRequest, MissingParameter, UnsupportedParameter
from cortex.wire import decode

IMAGE_URL = re.compile(r"https?://|data:[^,]*;base64,", re.IGNORECASE)


def parse_request(body: bytes, request_id: str) -> ChatRequest:
    """Read a request; see `cortex.api.ChatDialect`."""
    wire = decode(decode_request, body)
    refuse_unsupported(wire)
    if wire.top_logprobs and not wire.logprobs:
        raise InvalidRequest("top_logprobs wants logprobs", param="top_logprobs")
    tools = tuple(parse_tool(tool, n) for n, tool in enumerate(wire.tools or []))
    return ChatRequest(
        id=request_id,
        model=wire.model,
        messages=tuple(parse_message(m, f"messages[{n}]") for n, m in enumerate(wire.messages)),
        n=wire.n or 1,
        sampling=wire.sampling(
            max_tokens=wire.max_completion_tokens or wire.max_tokens,
            logprobs=(wire.top_logprobs or 0) if wire.logprobs else None,
        ),
        tools=tools,
        tool_choice=parse_tool_choice(wire, tools),
        format=parse_format(wire),
        reasoning=parse_reasoning(wire),
        template_args=wire.chat_template_kwargs or {},
        stream=bool(wire.stream),
        include_usage=wire.asks_usage,
        private=wire.counts_at_once or None,
    )


def refuse_unsupported(wire: WireRequest) -> None:
    """Raise for the first field that asks for what we cannot do."""
    goes_on = wire.messages[-1].role == "assistant" and not wire.messages[-1].tool_calls
    asked = {
        "continue_final_message": wire.continue_final_message is (not goes_on),
        "add_generation_prompt": wire.add_generation_prompt is goes_on,
        "functions": bool(wire.functions),
        "function_call": wire.function_call not in (None, "none", "auto"),
        "audio": wire.audio is not None,
        "modalities": wire.modalities not in (None, [], ["text"]),
    }
    for number, message in enumerate(wire.messages):
        asked[f"messages[{number}].function_call"] = message.function_call is not None
        asked[f"messages[{number}].audio"] = message.audio is not None
    for param, is_asked in asked.items():
        if is_asked:
            raise UnsupportedParameter(f"{param} is not supported", param=param)


def parse_message(wire: WireMessage, at: str) -> Message:
    """Read one turn; text reads the same as a string and as parts."""
    parts = tuple(parse_content(wire.content, f"{at}.content"))
    if wire.role == "tool":
        if wire.tool_call_id is None:
            where = f"{at}.tool_call_id"
            raise MissingParameter(f"{where} is required", param=where)
        return Message(role="tool", parts=(ToolResult(call_id=wire.tool_call_id, parts=parts),))
    if wire.role != "assistant":
        role = "system" if wire.role == "developer" else wire.role
        return Message(role=role, parts=parts)
    said: list[Part] = []
    if thought := wire.reasoning_content or wire.reasoning:
        said.append(Thinking(thought))
    said += parts
    if wire.refusal:
        said.append(Text(wire.refusal))
    calls = wire.tool_calls or []
    said += (parse_call(call, f"{at}.tool_calls[{n}]") for n, call in enumerate(calls))
    return Message(role="assistant", parts=tuple(said))


def parse_content(content: str | list[WirePart] | None, at: str) -> Iterator[Text | Image]:
    """Read a turn's content; a string and an array read alike, and empty text is none."""
    if isinstance(content, str):
        content = [WirePart(type="text", text=content)]
    parts = (parse_part(part, f"{at}[{number}]") for number, part in enumerate(content or []))
    yield from (part for part in parts if part != Text(""))


def parse_part(part: WirePart, at: str) -> Text | Image:
    """Read an element of a content array."""
    match part:
        case WirePart(type="text", text=str(text)) | WirePart(type="refusal", refusal=str(text)):
            return Text(text)
        case WirePart(type="image_url", image_url=image) if image is not None:
            url, detail = (image, None) if isinstance(image, str) else (image.url, image.detail)
            if not IMAGE_URL.match(url):
                where = f"{at}.image_url.url"
                raise InvalidRequest(
                    f"{where}: expected http(s):// or a data: URI with base64", param=where
                )
            return Image(url=url, detail=detail)
        case WirePart(type="text" | "refusal" | "image_url"):
            raise MissingParameter(f"{at}.{part.type} is required", param=f"{at}.{part.type}")
    raise UnsupportedParameter(f"{at}: content of type {part.type!r} is not supported", param=at)


def parse_call(call: WireCall, at: str) -> ToolCall:
    """Read a call of an earlier turn."""
    if call.type != "function":
        raise UnsupportedParameter(
            f"{at}: calls of type {call.type!r} are not supported", param=f"{at}.type"
        )
    if call.function is None:
        raise MissingParameter(f"{at}.function is required", param=f"{at}.function")
    return ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)


def parse_tool(tool: WireTool, number: int) -> Tool:
    """Read an element of ``tools``."""
    at = f"tools[{number}]"
    if tool.type != "function":
        raise UnsupportedParameter(
            f"{at}: tools of type {tool.type!r} are not supported", param=f"{at}.type"
        )
    if tool.function is None:
        raise MissingParameter(f"{at}.function is required", param=f"{at}.function")
    return Tool(
        name=tool.function.name,
        description=tool.function.description or "",
        parameters=tool.function.parameters or {},
        strict=bool(tool.function.strict),
    )


def parse_tool_choice(wire: WireRequest, tools: tuple[Tool, ...]) -> ToolChoice:
    """Read which tools the model may or must call; what it must call has to be there."""
    parallel = wire.parallel_tool_calls is not False
    match wire.tool_choice:
        case None:
            return ToolChoice(parallel=parallel)
        case str(mode):
            if mode == "required" and not tools:
                raise InvalidRequest("tool_choice is required, and tools is empty", param="tools")
            return ToolChoice(mode=mode, parallel=parallel)
    choice = wire.tool_choice
    if choice.type != "function":
        raise UnsupportedParameter(
            f"tool_choice of type {choice.type!r} is not supported", param="tool_choice.type"
        )
    if choice.function is None:
        raise MissingParameter("tool_choice.function is required", param="tool_choice.function")
    name, where = choice.function.name, "tool_choice.function.name"
    if name not in [tool.name for tool in tools]:
        raise InvalidRequest(f"{where}: no tool is called {name!r}", param=where)
    return ToolChoice(mode="required", name=name, parallel=parallel)


def parse_format(wire: WireRequest) -> JsonFormat | None:
    """Read what the answer must look like."""
    asked = wire.response_format
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return JsonFormat()
    if asked.type != "json_schema":
        raise UnsupportedParameter(
            f"response_format of type {asked.type!r} is not supported", param="response_format.type"
        )
    schema, where = asked.json_schema, "response_format.json_schema"
    if schema is None:
        raise MissingParameter(f"{where} is required", param=where)
    return JsonFormat(
        schema=schema.schema,
        name=schema.name,
        description=schema.description or "",
        strict=schema.strict is not False,
    )


def parse_reasoning(wire: WireRequest) -> Reasoning:
    """Read how much to think; what the client tells the template goes first."""
    enabled = (wire.chat_template_kwargs or {}).get("enable_thinking")
    return reasoning(
        wire.reasoning_effort,
        enabled=enabled if isinstance(enabled, bool) else None,
        budget_tokens=wire.thinking_token_budget,
    )
