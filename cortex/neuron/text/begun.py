"""An answer that was begun: the last turn of a conversation, where it is the assistant's own."""

from __future__ import annotations

import re

import attrs

from cortex.chat.request import Message, Thinking, ToolCall
from cortex.chat.turns import merged
from cortex.errors import InvalidRequest
from cortex.neuron.text import harmony
from cortex.neuron.text.syntaxes import Reasoning, Syntax
from cortex.neuron.text.template import PROBE, Template, says

THOUGHT = "the lazy thought"


@attrs.frozen(kw_only=True)
class Begun:
    """
    What was said of an answer before.

    Attributes:
        written: All of it behind the prompt, as the model would have written it.
        tokens: How many at the end of the prompt that is.
        thought_tokens: Those of them that are thought.
    """

    thought: str = ""
    text: str = ""
    written: str = ""
    tokens: int = 0
    thought_tokens: int = 0


def split(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], Begun | None]:
    """
    Return a conversation up to where the assistant answers, and what there is of the answer.

    A turn with calls is never the beginning of one: it waits for their results.
    """
    end = len(messages)
    while end and messages[end - 1].role == "assistant" and not has_calls(messages[end - 1]):
        end -= 1
    if end == len(messages):
        return messages, None
    (turn,) = merged(messages[end:])
    thought = "".join(part.text for part in turn.parts if isinstance(part, Thinking))
    return messages[:end], Begun(thought=thought, text=turn.text)


def has_calls(turn: Message) -> bool:
    """Tell whether a turn calls tools."""
    return any(isinstance(part, ToolCall) for part in turn.parts)


def written(
    begun: Begun, syntax: Syntax, blanks: tuple[str, str, str], *, opened: bool | None
) -> str:
    """
    Return an answer as the model writes it, behind its prompt.

    Args:
        begun: What there is of it.
        syntax: Of the model.
        blanks: See `Reasoning`.
        opened: The prompt opens the model's thoughts, or closes them; None if it does neither.
    """
    if syntax.harmony:
        return harmony.written(begun.thought, begun.text)
    marks = syntax.reasoning
    thinks = begun.thought or opened or (marks and marks.implied)
    if marks is None or opened is False or not thinks or not (begun.thought or begun.text):
        return begun.text
    head = begun.thought if opened else f"{marks.opens}{blanks[0]}{begun.thought}"
    if not begun.text:
        return head
    wrapper = syntax.wrappers[0] if syntax.wrappers else ""
    return f"{head}{blanks[1]}{marks.closes}{blanks[2]}{wrapper}{begun.text}"


def blanks_of(template: Template, marks: Reasoning) -> tuple[str, str, str]:
    """Return the white space a template puts around thoughts, else what the family does."""
    part = [{"type": "text", "text": PROBE}]
    content = part if template.abilities.parts else PROBE
    turn = says("assistant", content, reasoning_content=THOUGHT, thinking=THOUGHT)
    try:
        said = template.render([says("user", content), turn])
    except InvalidRequest:
        return marks.blanks
    opens, closes = re.escape(marks.opens), re.escape(marks.closes)
    found = re.search(rf"{opens}(\s*){THOUGHT}(\s*){closes}(\s*){PROBE}", said)
    return (found[1], found[2], found[3]) if found else marks.blanks
