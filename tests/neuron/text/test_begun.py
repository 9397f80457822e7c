"""An answer that was begun is gone on from: nothing of it comes twice, nothing is missing."""

from __future__ import annotations

from functools import cache

import attrs
import pytest

from cortex.chat.events import TextDelta, ThinkingDelta, ToolCallDelta, ToolCallStarted
from cortex.chat.request import ChatRequest, JsonFormat, Sampling, Text, Thinking, ToolCall
from cortex.errors import UnsupportedParameter
from tests.chat.test_turns import assistant, user
from tests.neuron.text import templates
from tests.neuron.text.answers import TOOLS
from tests.neuron.text.test_answer import tokens_of
from tests.neuron.text.test_parser import meaning
from tests.neuron.text.test_side import BACKEND, side

CALL = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
TIGHT = templates.KEEPING.replace("<think>\\n' +", "<think>' +").replace(
    "+ '\\n</think>\\n\\n'", "+ '</think>'"
)
IMPLIED = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<\uff5cAssistant\uff5c>"
    "{{ '' if true else '</think>' }}{{ tools or '' }}"
)
ANSWERS = {  # template, what the model writes behind the prompt
    "text": (templates.MISTRAL, "So it is.\n\nYes [TOO] much [TOOL"),
    "thoughts": (templates.QWEN, "<think>\nHm.\n\nI <b> see </th.\n</think>\n\nYes, < it is.\n"),
    "thoughts the prompt opened": (templates.OPENING, "Hm.\n\nSo.\n</think>\n\nYes."),
    "thoughts of a family that sets them tight": (TIGHT, "<think>Hm.</think>Yes."),
    "thoughts and a call": (templates.QWEN, f"<think>\nHm.\n</think>\n\nI look.\n{CALL}"),
    "channels": (
        templates.HARMONY,
        "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>A",
    ),
}


compiled = cache(side)


def going_on(template, *parts, turns=(), **more):
    """Return the text side, the request and its prompt."""
    one = compiled(template)
    asked = (user("x"), *turns, assistant(*parts))
    request = ChatRequest(id="r", model="m", messages=asked, tools=TOOLS, **more)
    return one, request, one.prompt(request)


def fed(answer, text, *, ended=True):
    events = [event for token in tokens_of(text) for event in answer.feed(token)]
    return [*events, *(answer.finish() if ended else [])]


def plain(template):
    one = compiled(template)
    request = ChatRequest(id="r", model="m", messages=(user("x"),), tools=TOOLS)
    return one.answer(request, one.prompt(request)), one.prompt(request)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_goes_on_from_wherever_it_was_cut(name):
    template, written = ANSWERS[name]
    whole, bare = plain(template)
    means = meaning(fed(whole, written))
    for at in range(len(written) + 1):
        answer, _ = plain(template)
        before = fed(answer, written[:at], ended=False)
        if any(isinstance(event, ToolCallStarted) for event in before):
            break
        said = meaning(before)
        parts = [Thinking(text) if kind == "thinking" else Text(text) for kind, text in said]
        one, request, prompt = going_on(template, *parts)
        assert prompt.ids[: len(bare.ids)] == bare.ids, at
        put = prompt.begun.written
        assert BACKEND.decode(prompt.ids[len(bare.ids) :], skip_special_tokens=False) == put
        assert written.startswith(put), at
        after = fed(one.answer(request, prompt), written[len(put) :])
        assert meaning([*before, *after]) == means, at


def test_text_behind_thoughts_that_are_implied_or_opened_closes_them():
    for template, before in (
        (IMPLIED, "<think>\n\n</think>\n\n"),
        (templates.OPENING, "\n</think>\n\n"),
    ):
        one, request, prompt = going_on(template, "It is")
        assert prompt.begun.written == f"{before}It is"
        events = fed(one.answer(request, prompt), " warm.")
        assert meaning(events) == [("text", " warm.")]


def test_a_word_goes_on_and_stop_strings_count_in_what_is_new_alone():
    one, request, prompt = going_on(
        templates.QWEN, "stop here, w", sampling=Sampling(stop=("stop",), logprobs=1)
    )
    events = fed(one.answer(request, prompt), "arm st")
    assert meaning(events) == [("text", "arm st")]
    tokens = [one for event in events for one in event.logprobs]
    assert "".join(token.token for token in tokens) == "arm st"
    request = attrs.evolve(request, sampling=Sampling(stop=("stop",)))
    stopped = one.answer(request, prompt)
    assert meaning(fed(stopped, "arm stop it")) == [("text", "arm ")]
    assert stopped.stop_string == "stop"


def test_a_call_that_was_begun_as_text_is_a_call_and_comes_whole():
    one, request, prompt = going_on(templates.QWEN, "I look.\n" + CALL[:30])
    events = fed(one.answer(request, prompt), CALL[30:])
    assert [type(event) for event in events if not isinstance(event, ToolCallDelta)] == [
        ToolCallStarted
    ]
    assert meaning(events) == [("call", "time", "{}")]


def test_turns_of_the_assistant_in_a_row_at_the_end_are_one():
    _, _, prompt = going_on(templates.MISTRAL, "b", turns=(assistant("a"),))
    assert prompt.begun.written == "a\n\nb"


def test_a_turn_with_calls_is_answered_anew_and_so_is_one_with_nothing_in_it():
    one, request, prompt = going_on(templates.QWEN, ToolCall(id="1", name="time"))
    assert prompt.begun is None
    _, bare = plain(templates.QWEN)
    one, request, prompt = going_on(templates.QWEN)
    assert prompt.ids == bare.ids
    assert meaning(fed(one.answer(request, prompt), "<think>a</think>b")) == [
        ("thinking", "a"),
        ("text", "b"),
    ]


def test_an_answer_that_was_begun_cannot_be_held_to_a_form():
    one, request, prompt = going_on(templates.QWEN, "{", format=JsonFormat())
    with pytest.raises(UnsupportedParameter, match="begun") as caught:
        one.grammar(request, prompt)
    assert caught.value.param == "messages"


def test_thoughts_count_as_such_only_where_they_are_new():
    one, request, prompt = going_on(templates.QWEN, Thinking("Hm"))
    answer = one.answer(request, prompt)
    events = fed(answer, " so</think>Yes")
    assert meaning(events) == [("thinking", " so"), ("text", "Yes")]
    assert (answer.tokens, answer.reasoning_tokens) == (7, 4)
    assert [type(event) for event in events][:2] == [ThinkingDelta, ThinkingDelta]
    assert isinstance(events[-1], TextDelta)
