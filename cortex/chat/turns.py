"""
Conversations in the one order every chat template takes.

Pure, and append-only: the turns of a conversation stay as they are when more follow, so that the
prompt of one turn is the beginning of the next one's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise, takewhile

import attrs

from cortex.chat.request import Image, Message, Part, Text, ToolCall, ToolResult
from cortex.errors import VisionUnsupported

REMINDER = "<system-reminder>\n{}\n</system-reminder>"
TOOL_ERROR = "[tool error] "
BETWEEN = Text("\n\n")


def normalised(
    messages: Iterable[Message], *, images_in_results: bool = False
) -> tuple[Message, ...]:
    """
    Return *messages* with at most one system turn, the first, and tool results where they belong.

    - The system turns at the head are one, joined with a newline.
    - A later one is a reminder: user text in tags, part of the user turn beside it.
    - The results of a turn's calls follow it in the order of the calls, a turn each: an error is
      marked in words, images move into the user turn that follows unless they may stay.

    Whatever is normalised stays as it is.
    """
    turns = list(messages)
    head = list(takewhile(lambda turn: turn.role == "system", turns))
    system = "\n".join(turn.text for turn in head)
    rest = reminded(results_in_order(turns[len(head) :], images_in_results))
    return (*([Message(role="system", parts=(Text(system),))] if head else []), *rest)


def merged(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Return *messages* with user turns in a row, and assistant turns in a row, as one."""
    turns: list[Message] = []
    for turn in messages:
        if turns and turn.role == turns[-1].role and turn.role in ("user", "assistant"):
            turns[-1] = joined(turns[-1], turn)
        else:
            turns.append(turn)
    return tuple(turns)


def joined(first: Message, second: Message) -> Message:
    """Return one turn of two: texts a blank line apart, what was thought before what was said."""
    both = bool(first.text and second.text)
    return attrs.evolve(first, parts=(*first.parts, *([BETWEEN] if both else []), *second.parts))


def reminded(turns: Iterable[Message]) -> Iterator[Message]:
    """Yield *turns* with each system turn in the user turn before it, else in the one after it."""
    waiting: Message | None = None  # a user turn that more may join
    glue = False  # the next user turn joins it
    for turn in turns:
        if turn.role == "system":
            reminder = Message(role="user", parts=(Text(REMINDER.format(turn.text)),))
            glue = glue or waiting is None
            waiting = joined(waiting, reminder) if waiting else reminder
            continue
        if waiting is not None and turn.role == "user" and glue:
            waiting, glue = joined(waiting, turn), False
            continue
        if waiting is not None:
            yield waiting
        waiting, glue = (turn, False) if turn.role == "user" else (None, False)
        if waiting is None:
            yield turn
    if waiting is not None:
        yield waiting


def results_in_order(turns: Sequence[Message], with_images: bool) -> Iterator[Message]:
    """Yield *turns* with the results of an assistant's calls right behind it."""
    starts = [0, *(n for n, turn in enumerate(turns) if turn.role == "assistant"), len(turns)]
    for start, end in pairwise(starts):
        yield from stretch(turns[start:end], with_images)


def stretch(turns: Sequence[Message], with_images: bool) -> Iterator[Message]:
    """Yield what goes from one assistant's turn to the next: it, the results, the other turns."""
    said = [turn for turn in turns[:1] if turn.role == "assistant"]
    calls = {part.id: part for turn in said for part in turn.parts if isinstance(part, ToolCall)}
    order = {call: number for number, call in enumerate(calls)}
    results = [
        part
        for turn in turns
        if turn.role == "tool"
        for part in turn.parts
        if isinstance(part, ToolResult)
    ]
    results.sort(key=lambda result: order.get(result.call_id, len(order)))
    others = [turn for turn in turns[len(said) :] if turn.role != "tool"]
    told = marked if with_images else as_text
    pictures = [] if with_images else [part for each in results for part in shown(each, calls)]
    if pictures:
        showing = Message(role="user", parts=tuple(pictures))
        if others and others[0].role == "user":
            showing = joined(showing, others.pop(0))
        others.insert(0, showing)
    yield from said
    for result in results:
        yield Message(role="tool", parts=(told(result),))
    yield from others


def marked(result: ToolResult) -> ToolResult:
    """Return a result that is no error, but says so if it was one."""
    mark = (Text(TOOL_ERROR),) if result.is_error else ()
    return ToolResult(call_id=result.call_id, parts=(*mark, *result.parts))


def as_text(result: ToolResult) -> ToolResult:
    """Return a result as text alone."""
    text = marked(result).text
    return ToolResult(call_id=result.call_id, parts=(Text(text),) if text else ())


def shown(result: ToolResult, calls: Mapping[str, ToolCall]) -> Iterator[Part]:
    """Yield the images of a result, behind a caption."""
    images = [part for part in result.parts if isinstance(part, Image)]
    if images:
        name = calls[result.call_id].name if result.call_id in calls else "a tool"
        yield Text(f"[images in the result of {name}, call {result.call_id}]\n")
        yield from images


def refuse_images(messages: Sequence[Message], model: str, hint: str = "") -> None:
    """Raise for the first image, which *model* does not see."""
    for number, message in enumerate(messages):
        for place, part in enumerate(message.parts):
            if images_of([attrs.evolve(message, parts=(part,))]):
                at = f"messages[{number}].content[{place}]"
                raise VisionUnsupported(f"model {model!r} sees no images", hint=hint, param=at)


def images_of(turns: Iterable[Message]) -> list[Image]:
    """Return the images of some turns, in order."""
    return [
        part
        for turn in turns
        for outer in turn.parts
        for part in (outer.parts if isinstance(outer, ToolResult) else (outer,))
        if isinstance(part, Image)
    ]
