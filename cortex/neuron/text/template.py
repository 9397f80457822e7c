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
SHOWN = [{"type": "text", "text": PROBE}, {"type": "image"}]
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
        tools_in_system: They do as text of the system turn's own.
        calls: So do the calls of earlier turns.
        objects: Arguments of calls are objects; else they are text.
        several_calls: A turn may have more than one.
        thoughts_and_text: A turn with a call may have both.
        user_after_results: The user may say something before the assistant has.
        images: What the user says may have images in it.
        images_in_results: So may results of tools.
    """

    system: bool = True
    in_a_row: bool = True
    parts: bool = False
    tools: bool = True
    tools_in_system: bool = False
    calls: bool = True
    objects: bool = True
    several_calls: bool = True
    thoughts_and_text: bool = True
    user_after_results: bool = True
    images: bool = False
    images_in_results: bool = False


class Template:
    """A compiled chat template."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], placeholder: str | None = None
    ) -> None:
        """Compile *source*; *placeholder* is what it writes for an image, if the model sees."""
        self._template = compiled(source)
        self._special_tokens = special_tokens
        self._placeholder = placeholder

    def render(self, turns: Sequence[Turn], tools: Sequence[Turn] = (), /, **arguments: Any) -> str:
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
        listed = [{"type": "text", "text": PROBE}]
        plain = self._try([says("user")])
        tools = () if plain or self._try([says("user", listed)]) else (TOOL,)  # some insist on them
        parts = PROBE not in self._try([says("user")], tools)
        parts = parts and PROBE in self._try([says("user", listed)], tools)

        def turn(role: str, text: str = PROBE, /, **more: object) -> Turn:
            return says(role, [{"type": "text", "text": text}] if parts else text, **more)

        def tried(*turns: Turn) -> str:
            return self._try(turns, tools)

        user, answer = turn("user"), turn("assistant")
        result = turn("tool", "ok", tool_call_id="call00000", name="quick_probe")

        def after_calls(*calls: Turn, then: Sequence[Turn] = (), **more: str) -> str:
            turns = (user, turn("assistant", tool_calls=list(calls), **more))
            return tried(*turns, *[result for _ in calls], *then)

        fox, dog = called({"brown": "fox"}), called({"lazy": "dog"})
        objects = "fox" in after_calls(fox)
        if not objects and "fox" in after_calls(fox_text := called('{"brown": "fox"}')):
            fox, dog = fox_text, called('{"lazy": "dog"}')
        calls = "fox" in after_calls(fox)
        as_argument = "quick_probe" in self._try([user], [TOOL])
        in_system = "quick_probe" in tried(turn("system", tools='["quick_probe"]'), user)
        return Abilities(
            system="a bear" in tried(turn("system", "a bear"), user),
            in_a_row=bool(tried(user, user, answer, answer, user)),
            parts=parts,
            tools=as_argument or in_system,
            tools_in_system=in_system and not as_argument,
            calls=calls,
            objects=objects or not calls,
            several_calls=not calls or "dog" in after_calls(fox, dog),
            thoughts_and_text=not calls
            or bool(after_calls(fox, reasoning_content="a", thinking="a")),
            user_after_results=not calls or bool(after_calls(fox, then=[user])),
            images=self._shows(tried(says("user", SHOWN))),
            images_in_results=self._shows(
                tried(user, turn("assistant", tool_calls=[fox]), {**result, "content": SHOWN})
            ),
        )

    def _shows(self, text: str) -> bool:
        return self._placeholder is not None and text.count(self._placeholder) == 1

    def _try(self, turns: Sequence[Turn], tools: Sequence[Turn] = ()) -> str:
        try:
            return self.render(turns, tools)
        except InvalidRequest:
            return ""


def says(role: str, content: object = PROBE, **more: object) -> Turn:
    """Return a turn to try."""
    return {"role": role, "content": content, **more}


def called(arguments: object) -> Turn:
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
