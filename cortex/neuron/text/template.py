"""A model's chat template, rendered as transformers does, and what it turns out to be able to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NoReturn

import attrs

from cortex.errors import InvalidRequest

Turn = Mapping[str, Any]
PROBE = "the quick brown probe"
TOOL = {
    "type": "function",
    "function": {
        "name": "quick_probe",
        "description": PROBE,
        "parameters": {"type": "object", "properties": {"brown": {"type": "string"}}},
    },
}


@attrs.frozen(kw_only=True)
class Abilities:
    """
    What a template takes, found out by rendering.

    Attributes:
        system: A system turn at the head.
        in_a_row: Several turns of one role.
        parts: Content has to be a list of parts.
        tools: Tools get into the prompt.
        objects: Arguments of calls are objects; else they are text.
        several_calls: A turn may have more than one.
    """

    system: bool
    in_a_row: bool
    parts: bool
    tools: bool
    objects: bool
    several_calls: bool


class Template:
    """A compiled chat template."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._template = compiled(source)
        self._special_tokens = special_tokens

    def render(self, turns: Sequence[Turn], tools: Sequence[Turn] = (), **arguments: Any) -> str:
        """
        Return the prompt, up to where the assistant answers.

        Raises:
            InvalidRequest: The template refuses these turns.
        """
        known = {"add_generation_prompt": True, **self._special_tokens, **arguments}
        try:
            text: str = self._template.render(
                {**known, "messages": list(turns), "tools": list(tools) or None}
            )
        except Exception as error:  # noqa: BLE001 - a template is a program, and not ours
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from None
        return text

    @cached_property
    def abilities(self) -> Abilities:
        """Find out what the template can do."""
        user, parts = says("user"), {"role": "user", "content": [{"type": "text", "text": PROBE}]}
        wants_parts = PROBE not in self._try([user]) and PROBE in self._try([parts])
        user = parts if wants_parts else user
        answer, called = says("assistant"), says("assistant", tool_calls=[call({"brown": "fox"})])
        result = {**says("tool"), "tool_call_id": "call00000", "name": "quick_probe"}
        twice = {**called, "tool_calls": [call({}), call({})]}
        as_text = {**called, "tool_calls": [call('{"brown": "fox"}')]}
        with_call = self._try([user, called, result])
        return Abilities(
            system=PROBE[4:] in self._try([says("system", PROBE[4:]), {**user, "content": "x"}])
            if not wants_parts
            else bool(self._try([{**parts, "role": "system"}, user])),
            in_a_row=bool(self._try([user, user, answer, answer, user])),
            parts=wants_parts,
            tools="quick_probe" in self._try([user], [TOOL]),
            objects="fox" in with_call or "fox" not in self._try([user, as_text, result]),
            several_calls=not with_call or bool(self._try([user, twice, result, result])),
        )

    def _try(self, turns: Sequence[Turn], tools: Sequence[Turn] = ()) -> str:
        try:
            return self.render(turns, tools)
        except InvalidRequest:
            return ""


def says(role: str, text: str = PROBE, **more: object) -> dict[str, Any]:
    """Return a turn to try."""
    return {"role": role, "content": text, **more}


def call(arguments: object) -> dict[str, Any]:
    """Return a call to try; its id pleases the strictest."""
    function = {"name": "quick_probe", "arguments": arguments}
    return {"id": "call00000", "type": "function", "function": function}


def compiled(source: str) -> Any:
    """Compile a chat template as transformers does: sandboxed, with its extra names."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks what an assistant said, for training; it says nothing here."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 has it so

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now(UTC).strftime(form)
    return environment.from_string(source)
