"""
What an answer must look like, written as a grammar for llguidance.

The neuron composes and checks it, so that a schema nobody can enforce is a 400; the worker, which
has the model's tokenizer, follows it token by token (`cortex.neuron.engine.grammar`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from cortex.chat.request import JsonFormat, Tool, ToolChoice
from cortex.errors import InvalidRequest

# One space, or a line break and its indent: a small model that may write any space never stops.
WHITESPACE = r"( |\n[ \t]{0,40})?"
TEXT = r"/(.|\n)*/"
MAX_SYMBOLS = 20_000  # of one schema: time grows with the cube of an object's properties
MARK = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]")
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


@attrs.frozen(kw_only=True)
class CallSyntax:
    """
    How a model writes its calls, as literal text.

    ``open``, then calls with ``between`` between them, then ``close``; a call is ``before``, the
    tool's name, ``middle``, the arguments as a JSON object, ``after``.  Where `parameter` is given,
    arguments are written one by one instead: each is its first string, the name, its second, the
    value (strings as they are, anything else as JSON), its third.
    """

    open: str = ""
    before: str
    middle: str
    after: str
    between: str = ""
    close: str = ""
    parameter: tuple[str, str, str] | None = None

    @property
    def mark(self) -> str:
        """What tells calls from other text; nothing if they do not begin with such a thing."""
        found = MARK.match(self.open + self.before)
        return found[0] if found else ""


@attrs.frozen(kw_only=True)
class Constraint:
    """
    Composes the grammar of one answer.

    Attributes:
        syntax: How the model writes calls, if it can.
        thought: What ends the model's thinking, if it thinks before it answers: until then it may
            say anything.
        opening: What begins it, if the prompt has not; then the model may also answer at once.
        head: What an answer of a format begins with.
        special: Ids of the special tokens, by their text; in the other strings, too, these stand
            for the token.
    """

    syntax: CallSyntax | None = None
    thought: str | None = None
    opening: str | None = None
    head: str = ""
    special: Mapping[str, int] = attrs.field(factory=dict)

    def grammar(
        self,
        answer: JsonFormat | None,
        tools: Sequence[Tool] = (),
        choice: ToolChoice | None = None,
    ) -> str | None:
        """
        Return the grammar, or None if the model may say what it likes.

        An answer of a format may instead be calls, if there are tools to choose from.  Where the
        model may call or not, its calls are held to their schemas if a tool is strict and they have
        a mark to tell them by.  Arguments of a tool that is not strict may be any object where its
        schema cannot be enforced.

        Raises:
            InvalidRequest: A schema cannot be enforced.
        """
        choice = choice or ToolChoice()
        required = choice.mode == "required"
        answers: list[str] = []
        rules: list[str] = []
        if self.syntax and tools and (required or (answer and choice.mode == "auto")):
            answers.append("calls")
            rules += self._calls(self.syntax, tools, choice)
        elif self.syntax and self.syntax.mark and choice.mode == "auto" and _strict(tools):
            answers.append("free")
            rules += self._free(self.syntax, parallel=choice.parallel)
            rules += self._calls(self.syntax, tools, choice)
        if answer is not None and not required:
            answers.append("json")
            schema = ANY_OBJECT if answer.schema is None else answer.schema
            json_text = enforced(schema, "response_format", strict=answer.strict)
            rules.append(f"json: {self._literal(self.head)} {json_text}")
        return "\n".join([*self._start(" | ".join(answers)), *rules]) if answers else None

    def _start(self, answers: str) -> Iterator[str]:
        if self.thought is None:
            yield f"start: {answers}"
            return
        if self.opening is None:
            yield f"start: thought space ({answers})"
        else:
            yield f"start: (space {self._literal(self.opening)} thought space)? ({answers})"
        yield from self._until("thought", self.thought)
        yield r"space: /[ \n]{0,4}/"

    def _calls(
        self, syntax: CallSyntax, tools: Sequence[Tool], choice: ToolChoice
    ) -> Iterator[str]:
        chosen = [n for n, tool in enumerate(tools) if choice.name in (None, tool.name)]
        if not chosen:
            raise InvalidRequest(f"there is no tool {choice.name!r} to choose", param="tool_choice")
        more = f"({self._literal(syntax.between)} call)*" if choice.parallel else ""
        yield f"calls: {self._literal(syntax.open)} call more"
        yield f"more: {more} {self._literal(syntax.close)}" if more or syntax.close else 'more: ""'
        yield f"call: {self._literal(syntax.before)} made"
        yield f"made: {' | '.join(f'made_{number}' for number in chosen)}"
        for number in chosen:
            tool = tools[number]
            head = self._literal(tool.name + syntax.middle)
            where = f"tools[{number}].parameters"
            if syntax.parameter is None:
                schema = {**ANY_OBJECT, **tool.parameters}
                arguments = _argument(schema, where, tool, otherwise=ANY_OBJECT)
            else:
                arguments = f"arguments_{number}"
                yield from self._parameters(arguments, syntax.parameter, tool, where)
            yield f"made_{number}: {head} {arguments} {self._literal(syntax.after)}"

    def _free(self, syntax: CallSyntax, *, parallel: bool) -> Iterator[str]:
        """Write a rule for any text, and calls where their mark is."""
        yield "free: (lead rest_of_calls)* text" if parallel else "free: text | lead rest_of_calls"
        yield from self._until("lead", syntax.mark)
        if syntax.open:
            opened = self._literal(syntax.open.removeprefix(syntax.mark))
            yield f"rest_of_calls: {opened} call more"
        else:
            opened = self._literal(syntax.before.removeprefix(syntax.mark))
            yield f"rest_of_calls: {opened} made more"
        yield f"text: {TEXT}"

    def _parameters(
        self, rule: str, around: tuple[str, str, str], tool: Tool, where: str
    ) -> Iterator[str]:
        """Write arguments one by one: those of the schema, in its order."""
        before, middle, after = around
        schema, parts = tool.parameters, []
        properties, required = schema.get("properties"), schema.get("required")
        properties = properties if isinstance(properties, Mapping) else {}
        required = required if isinstance(required, list) else []
        shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        for number, (name, one) in enumerate(properties.items()):
            part, value = f"{rule}_{number}", one if isinstance(one, Mapping) else {}
            if value.get("type") != "string":
                json_value = _argument({**value, **shared}, where, tool, otherwise={})
                yield f"{part}_value: {json_value} {self._literal(after)}"
            elif isinstance(value.get("enum"), list):
                several = " | ".join(self._literal(str(member)) for member in value["enum"])
                yield f"{part}_value: ({several}) {self._literal(after)}"
            else:
                yield from self._until(f"{part}_value", after)
            yield f"{part}: {self._literal(before + name + middle)} {part}_value"
            parts.append(part if name in required else f"{part}?")
        yield f"{rule}: {' '.join(parts)}" if parts else f'{rule}: ""'

    def _until(self, rule: str, end: str) -> Iterator[str]:
        """Write a rule for any text up to *end*, and that."""
        first, *rest = self._pieces(end)
        if first.startswith("<["):
            yield f"{rule}: {TEXT} {' '.join([first, *rest])}"
        else:
            yield f"{rule}: {' '.join([f'{rule}_text', *rest])}"
            yield f"{rule}_text[lazy]: {TEXT} {first}"

    def _literal(self, text: str) -> str:
        return " ".join(self._pieces(text))

    def _pieces(self, text: str) -> list[str]:
        """Return *text* in the grammar's syntax: strings, and tokens by their id."""
        special = sorted(self.special, key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, special))})", text) if special else [text]
        return [
            f"<[{self.special[piece]}]>" if piece in self.special else json.dumps(piece)
            for piece in pieces
            if piece
        ]


def enforced(schema: Mapping[str, Any], where: str, *, strict: bool) -> str:
    """
    Return the grammar of the JSON texts a schema allows.

    Args:
        schema: JSON Schema.
        where: The field it came in.
        strict: Refuse what cannot be enforced; else leave keywords that cannot be out.

    Raises:
        InvalidRequest: It is no schema, or cannot be enforced.
    """
    from llguidance import LLMatcher, LLParserLimits

    options = {"whitespace_pattern": WHITESPACE, "lenient": not strict}
    whole = json.dumps({**schema, "x-guidance": options})
    failed, said = LLMatcher.validate_grammar_with_warnings(
        LLMatcher.grammar_from_json_schema(whole),
        limits=LLParserLimits(max_grammar_size=MAX_SYMBOLS),
    )
    if failed:
        reason = " ".join(said[0].split())
        raise InvalidRequest(f"{where}: the schema cannot be enforced: {reason}", param=where)
    return f"%json {whole}"


def _strict(tools: Sequence[Tool]) -> bool:
    return any(tool.strict for tool in tools)


def _argument(
    schema: Mapping[str, Any], where: str, tool: Tool, *, otherwise: Mapping[str, Any]
) -> str:
    try:
        return enforced(schema, where, strict=tool.strict)
    except InvalidRequest:
        if tool.strict:
            raise
    return enforced(otherwise, where, strict=False)
