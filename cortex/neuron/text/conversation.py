"""A request's conversation, as the turns of a chat template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import groupby
from typing import Any

import attrs

from cortex.chat.request import (
    Image,
    Message,
    Part,
    Reasoning,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolResult,
)
from cortex.chat.turns import images_of, joined, merged, normalised
from cortex.neuron.constraint import CallSyntax
from cortex.neuron.text.syntaxes import Calls
from cortex.neuron.text.template import Abilities

LOW_TOKENS, MEDIUM_TOKENS = 2_000, 8_000  # budgets of thought under which effort is low, medium
FREE_TEXT = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
}


def turns_for(
    messages: Sequence[Message], abilities: Abilities, calls: Calls | None = None
) -> tuple[Message, ...]:
    """
    Return *messages* in turns that a template with *abilities* takes.

    Args:
        messages: As they came.
        abilities: Of the template.
        calls: How the model writes calls.
    """
    turns: Iterable[Message] = normalised(messages, images_in_results=abilities.images_in_results)
    if not abilities.system:
        turns = without_system(turns)
    if not abilities.user_after_results:
        turns = in_results(turns)
    if not abilities.in_a_row:
        turns = merged(turns)
    if not abilities.several_calls:
        turns = one_call_each(turns)
    if not abilities.calls and calls:
        turns = calls_as_text(turns, calls)
    return tuple(turns)


def written_turns(
    turns: Iterable[Message], abilities: Abilities, calls: Calls | None = None
) -> list[dict[str, Any]]:
    """Return turns from `turns_for` in the words of templates; arguments are the same."""
    history_ids = calls.history_ids if calls else ""
    names: dict[str, tuple[str, str]] = {}  # of calls by their ids: the template's id, the tool
    written = []
    for turn in turns:
        for call in turn.parts:
            if isinstance(call, ToolCall):
                names[call.id] = (history_id(call, len(names), history_ids), call.name)
        written.append(written_turn(turn, abilities, names))
    return written


def without_system(turns: Iterable[Message]) -> Iterator[Message]:
    """Yield *turns* with what the system says at the head of the first user turn."""
    system: Message | None = None
    for turn in turns:
        if turn.role == "system":
            system = attrs.evolve(turn, role="user")
        elif system is not None:
            yield joined(system, turn) if turn.role == "user" else system
            if turn.role != "user":
                yield turn
            system = None
        else:
            yield turn
    if system is not None:
        yield system


def in_results(turns: Iterable[Message]) -> Iterator[Message]:
    """Yield *turns* with what the user says behind a result at the end of that result."""
    last: Message | None = None  # a result
    for turn in turns:
        if last is not None and turn.role == "user":
            (result,) = (part for part in last.parts if isinstance(part, ToolResult))
            said = Text("\n\n".join(filter(None, (result.text, turn.text))))
            both: tuple[Text | Image, ...] = (said, *images_of((last, turn)))
            last = attrs.evolve(last, parts=(attrs.evolve(result, parts=both),))
            continue
        if last is not None:
            yield last
        last = turn if turn.role == "tool" else None
        if last is None:
            yield turn
    if last is not None:
        yield last


def one_call_each(turns: Iterable[Message]) -> Iterator[Message]:
    """Yield *turns* with a turn for each call, and its result behind it."""
    waiting: list[Message] = []  # turns of the calls whose results are still to come
    for turn in turns:
        calls = [part for part in turn.parts if isinstance(part, ToolCall)]
        if turn.role == "tool" and waiting:
            yield waiting.pop(0)
            yield turn
            continue
        yield from waiting
        waiting = []
        if len(calls) < 2:  # noqa: PLR2004 - more than one is the matter
            yield turn
            continue
        rest = tuple(part for part in turn.parts if not isinstance(part, ToolCall))
        waiting = [attrs.evolve(turn, parts=(call,)) for call in calls]
        waiting[0] = attrs.evolve(turn, parts=(*rest, calls[0]))
    yield from waiting


def calls_as_text(turns: Iterable[Message], syntax: Calls) -> Iterator[Message]:
    """Yield *turns* with calls as the model writes them, for a template that leaves them out."""
    for turn in turns:
        calls = [part for part in turn.parts if isinstance(part, ToolCall)]
        if not calls:
            yield turn
            continue
        rest = tuple(part for part in turn.parts if not isinstance(part, ToolCall))
        yield attrs.evolve(turn, parts=(*rest, Text(all_spelled(calls, syntax))))


def all_spelled(calls: Sequence[ToolCall], syntax: Calls) -> str:
    """Return calls as a model writes them; as JSON if nobody can say how."""
    if syntax.in_python:
        opens, closes = syntax.in_python
        said = [(call.name, as_object(call.arguments) or {}) for call in calls]
        written = [
            f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
            for name, arguments in said
        ]
        return f"{opens}{', '.join(written)}{closes}"
    form = syntax.written or CallSyntax(before='{"name": "', middle='", "arguments": ', after="}")
    return f"{form.open}{form.between.join(spelled(call, form) for call in calls)}{form.close}"


def spelled(call: ToolCall, syntax: CallSyntax) -> str:
    """Return a call as a model writes it."""
    arguments: str = call.arguments or "{}"
    if syntax.parameter is not None:
        said = as_object(call.arguments)
        before, middle, after = syntax.parameter
        arguments = "".join(
            f"{before}{key}{middle}{value if isinstance(value, str) else json.dumps(value)}{after}"
            for key, value in (said or {}).items()
        )
    return f"{syntax.before}{call.name}{syntax.middle}{arguments}{syntax.after}"


def written_turn(
    turn: Message, abilities: Abilities, names: Mapping[str, tuple[str, str]]
) -> dict[str, Any]:
    """Return one turn in the words of transformers."""
    text, parts = turn.text, turn.parts
    more: dict[str, Any] = {}
    calls = [part for part in turn.parts if isinstance(part, ToolCall)]
    if thoughts := "".join(part.text for part in turn.parts if isinstance(part, Thinking)):
        if calls and not abilities.thoughts_and_text:
            thoughts, text = "\n\n".join(filter(None, (thoughts, text))), ""
        more = {"reasoning_content": thoughts, "thinking": thoughts}  # templates differ
    if calls:
        more["tool_calls"] = [written_call(call, abilities, names[call.id][0]) for call in calls]
    for part in turn.parts:
        if isinstance(part, ToolResult):
            text, parts = part.text, part.parts
            call_id, name = names.get(part.call_id, (part.call_id, ""))
            more |= {"tool_call_id": call_id, **({"name": name} if name else {})}
    content: Any = [{"type": "text", "text": text}] if abilities.parts else text
    if any(isinstance(part, Image) for part in parts):
        content = list(written_parts(parts))
    return {"role": turn.role, "content": content, **more}


def written_parts(parts: Iterable[Part]) -> Iterator[dict[str, str]]:
    """Yield texts, those in a row as one, and images of what was said."""
    for shows, several in groupby(parts, lambda part: isinstance(part, Image)):
        if shows:
            yield from ({"type": "image"} for _ in several)
        elif text := "".join(part.text for part in several if isinstance(part, Text)):
            yield {"type": "text", "text": text}


def written_call(call: ToolCall, abilities: Abilities, call_id: str) -> dict[str, Any]:
    """Return a call with its arguments as an object; where they are none, as they are."""
    arguments: Any = call.arguments or "{}"
    if abilities.objects and (said := as_object(arguments)) is not None:
        arguments = said
    function = {"name": call.name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def as_object(arguments: str) -> dict[str, Any] | None:
    """Return the object a text says; None if it says none."""
    try:
        said = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def history_id(call: ToolCall, number: int, kind: str) -> str:
    """Return the id a template wants of a call."""
    match kind:
        case "functions":
            return f"functions.{call.name}:{number}"
        case "nine":
            return blake2b(call.id.encode(), digest_size=5).hexdigest()[:9]
    return call.id


def with_schemas(tools: Iterable[Tool]) -> tuple[Tool, ...]:
    """Return tools with a schema each: one for free text has a text, another has nothing."""
    free, empty = FREE_TEXT, {"type": "object", "properties": {}}
    return tuple(
        attrs.evolve(tool, parameters=free if tool.kind == "custom" else empty)
        if not tool.parameters
        else tool
        for tool in tools
    )


def written_tools(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """Return tools in the words of transformers."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": dict(tool.parameters),
            },
        }
        for tool in tools
    ]


def with_tools(turns: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return *turns* with tools, as text, beside what the system says."""
    system, rest = {"role": "system", "content": ""}, turns
    if turns and turns[0]["role"] == "system":
        system, rest = turns[0], turns[1:]
    functions = [tool["function"] for tool in tools]
    return [{**system, "tools": json.dumps(functions, ensure_ascii=False)}, *rest]


def thinking_arguments(reasoning: Reasoning) -> dict[str, Any]:
    """
    Return what templates are told of how much to think; they have several words for it.

    A budget without an effort is one: of less than 2,000 tokens low, of less than 8,000 medium.
    """
    effort, budget, enabled = reasoning.effort, reasoning.budget_tokens, reasoning.enabled
    if effort is None and budget is not None and enabled is not False:
        effort = "low" if budget < LOW_TOKENS else "medium" if budget < MEDIUM_TOKENS else "high"
    if enabled is None and effort is not None:
        enabled = effort != "none"
    arguments: dict[str, Any] = {}
    if enabled is not None:
        arguments |= {"enable_thinking": enabled, "thinking": enabled}
    if enabled and effort is not None:
        arguments["reasoning_effort"] = "low" if effort == "minimal" else effort
    if enabled and budget is not None:
        arguments["thinking_budget"] = budget
    return arguments
