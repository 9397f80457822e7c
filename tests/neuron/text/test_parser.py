"""What models write becomes events, wherever it is cut."""

from __future__ import annotations

import json
from itertools import pairwise

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.chat.events import TextDelta, ThinkingDelta, ToolCallDelta, ToolCallStarted
from cortex.chat.request import Tool, ToolCall, ToolChoice
from cortex.neuron.constraint import Constraint
from cortex.neuron.text.conversation import all_spelled
from cortex.neuron.text.families import CALLS, LFM, LLAMA, REASONING, detect
from cortex.neuron.text.parser import Parser
from cortex.neuron.text.syntaxes import Syntax
from cortex.neuron.text.tokens import Vocabulary
from tests.neuron.text.answers import (
    ANSWERS,
    CODER,
    HARMONY,
    HERMES,
    TOOLS,
    call,
    text,
    thought,
)
from tests.neuron.text.answers import (
    LLAMA as LLAMA_TEMPLATE,
)
from tests.neuron.text.templates import tokenizer_json

each_answer = pytest.mark.parametrize("name", ANSWERS)


def parser(template, **more):
    return Parser(detect(template), **{"stem": "r", "tools": TOOLS, **more})


def fed(reader, pieces, *, cut=False):
    """Return the events of some pieces."""
    events = [event for piece in pieces for event in reader.feed(piece)]
    return [*events, *reader.finish(cut=cut)]


def meaning(events):
    """Return events without how their texts are divided."""
    said = []
    for event in events:
        match event:
            case TextDelta(more) | ThinkingDelta(more):
                kind = "text" if isinstance(event, TextDelta) else "thinking"
                assert more
                if said and said[-1][0] == kind:
                    more = said.pop()[1] + more
                said.append((kind, more))
            case ToolCallStarted(index=index, name=name):
                assert index == sum(one[0] == "call" for one in said)
                said.append(("call", name, ""))
            case ToolCallDelta(index=index, arguments=arguments):
                assert arguments
                assert index == sum(one[0] == "call" for one in said) - 1
                kind, name, before = said.pop()
                assert kind == "call"
                said.append(("call", name, before + arguments))
    return said


def of(template, written, **more):
    return meaning(fed(parser(template, **more), [written]))


@each_answer
def test_an_answer_means_what_its_family_means_by_it(name):
    template, written, means = ANSWERS[name]
    assert of(template, written) == means


@each_answer
def test_it_means_the_same_in_two_pieces_wherever_it_is_cut(name):
    template, written, means = ANSWERS[name]
    for at in range(len(written) + 1):
        assert meaning(fed(parser(template), [written[:at], written[at:]])) == means, at


@each_answer
def test_it_means_the_same_character_by_character(name):
    template, written, means = ANSWERS[name]
    assert meaning(fed(parser(template), written)) == means


@given(st.data())
def test_it_means_the_same_in_any_pieces(data):
    template, written, means = ANSWERS[data.draw(st.sampled_from(sorted(ANSWERS)))]
    cuts = data.draw(st.sets(st.integers(0, len(written))))
    pieces = [written[a:b] for a, b in pairwise(sorted({0, len(written), *cuts}))]
    assert meaning(fed(parser(template), pieces)) == means


@given(st.data())
def test_whatever_the_pieces_of_marks_it_means_the_same_however_it_is_cut(data):
    """Also what no model would write: marks and texts of a family in any order."""
    template, written, _ = ANSWERS[data.draw(st.sampled_from(sorted(ANSWERS)))]
    marks = sorted(set(detect(template).marks()))
    bits = st.sampled_from([*marks, " ", "\n", '"', "{", "}", ":", ",", "time", "x", written])
    strange = "".join(data.draw(st.lists(bits, max_size=12)))
    how = {
        "parallel": data.draw(st.booleans()),
        "thinking": data.draw(st.booleans()),
        "stop": data.draw(st.sampled_from([(), ("x",), ("\n", "ti")])),
    }
    cut = data.draw(st.booleans())
    whole = meaning(fed(parser(template, **how), [strange], cut=cut))
    assert meaning(fed(parser(template, **how), strange, cut=cut)) == whole


def test_every_family_has_an_answer_here():
    syntaxes = [detect(template) for template, _, _ in ANSWERS.values()]
    assert {s.calls.family for s in syntaxes if s.calls} == {c.family for c in (*CALLS, LFM, LLAMA)}
    assert {s.reasoning.family for s in syntaxes if s.reasoning} == {r.family for r in REASONING}


@each_answer
def test_without_tools_a_call_is_text(name):
    template, written, means = ANSWERS[name]
    said = of(template, written, tools=())
    assert [one for one in said if one[0] == "call"] == []
    if any(one[0] == "call" for one in means) and not detect(template).harmony:
        assert said[-1][0] in ("text", "thinking")


def test_arguments_come_as_they_are_written():
    reader = parser(HERMES)
    head = '<tool_call>{"name": "get_weather", "arguments": {"city": "Par'
    assert meaning(reader.feed(head)) == [call("get_weather", '{"city": "Par')]
    assert reader.feed("is") == [ToolCallDelta(index=0, arguments="is")]


def test_an_argument_between_tags_comes_as_it_is_written_too():
    reader = parser(CODER)
    reader.feed("<tool_call>\n<function=get_weather>\n<parameter=city>\nPar")
    assert reader.feed("is\n") == [ToolCallDelta(index=0, arguments="is")]
    assert reader.feed("</parameter>") == [ToolCallDelta(index=0, arguments='"')]


def test_nothing_is_held_back_that_cannot_become_a_mark():
    reader = parser(HERMES)
    assert reader.feed("Hello <") == [TextDelta("Hello")]
    assert reader.feed("b>") == [TextDelta(" <b>")]


def test_ids_of_calls_are_the_same_each_time_and_others_for_another_request():
    written = ANSWERS["hermes"][1]

    def ids(stem):
        events = fed(parser(HERMES, stem=stem), [written])
        return [event.id for event in events if isinstance(event, ToolCallStarted)]

    assert ids("a") == ids("a")
    assert len({*ids("a"), *ids("b")}) == 4
    assert all(one.replace("_", "").isalnum() and len(one) <= 40 for one in ids("a"))


def test_a_prompt_may_have_opened_the_thoughts():
    assert of(HERMES, "Hm.\n</think>\n\nYes.", thinking=True) == [thought("Hm."), text("Yes.")]
    assert of(HERMES, "<think>\nHm.", thinking=True) == [thought("Hm.")]


def test_one_call_is_enough_where_more_are_not_welcome():
    written = ANSWERS["hermes"][1]
    reader = parser(HERMES, parallel=False)
    assert meaning(fed(reader, written)) == [
        thought("Hm."),
        text("I look."),
        call("get_weather", '{"city": "Paris"}'),
    ]
    assert reader.over
    assert reader.reason() == "tool_calls"


@pytest.mark.parametrize(
    ("written", "cut", "reason"),
    [("Yes.", False, "stop"), ("Yes.", True, "length"), ("<tool_call>{", False, "stop")],
)
def test_an_answer_without_calls_says_why_it_ended(written, cut, reason):
    reader = parser(HERMES)
    fed(reader, [written], cut=cut)
    assert reader.reason(cut=cut) == reason


def test_a_call_that_is_cut_off_is_what_came_of_it():
    reader = parser(HERMES)
    head = '<tool_call>{"name": "get_weather", "arguments": {"city": "Par'
    assert meaning(fed(reader, [head], cut=True)) == [call("get_weather", '{"city": "Par')]
    assert reader.reason(cut=True) == "length"
    reader = parser(CODER)
    head = "<function=get_weather>\n<parameter=city>\nPar"
    assert meaning(fed(reader, [head], cut=True)) == [call("get_weather", '{"city": "Par')]


def test_stop_strings_are_found_in_the_text_alone():
    written = "<think>END</think>It is the END of it"
    reader = parser(HERMES, stop=("END",))
    assert meaning(fed(reader, written)) == [thought("END"), text("It is the ")]
    assert (reader.stop_string, reader.over) == ("END", True)
    reader = parser(HERMES, stop=("Paris", "<tool_call>"))
    assert meaning(fed(reader, ANSWERS["hermes"][1])) == ANSWERS["hermes"][2]
    assert reader.stop_string is None


@pytest.mark.parametrize("pieces", [["a\nUser: b"], ["a\nUser:", " b"], "a\nUser: b"])
def test_of_stop_strings_that_overlap_the_first_to_end_is_found_however_it_is_cut(pieces):
    reader = parser(HERMES, stop=("\nUser:", "User", "r: b"))
    assert meaning(fed(reader, pieces)) == [text("a\n")]
    assert reader.stop_string == "User"


def test_a_stop_string_of_blank_lines_is_found_too():
    reader = parser(HERMES, stop=("\n\n",))
    assert meaning(fed(reader, "one\n\ntwo")) == [text("one")]


def test_thinking_is_told_while_it_lasts():
    reader = parser(HERMES)
    seen = []
    for piece in ("<think>", "Hm", "</thi", "nk>", "Yes"):
        reader.feed(piece)
        seen.append(reader.thinking)
    assert seen == [True, True, True, False, False]
    reader = parser(HARMONY)
    reader.feed("<|channel|>analysis<|message|>Hm")
    assert reader.thinking


def test_an_answer_that_must_be_a_tool_without_marks_has_to_name_one_there_is():
    assert of(LLAMA_TEMPLATE, '{"name": "nope"}') == [text('{"name": "nope"}')]
    assert of(HERMES, '<tool_call>{"name": "nope"}</tool_call>') == [call("nope")]


def test_an_answer_in_json_comes_as_it_is_written():
    reader = parser(LLAMA_TEMPLATE)
    assert meaning(reader.feed('{"title": "A')) == [text('{"title": "A')]
    assert reader.feed(" tale") == [TextDelta(" tale")]


def test_a_syntax_without_anything_leaves_all_as_it_is():
    plain = attrs.evolve(detect("nothing"), calls=None)
    written = " <think>x</think> [TOOL_CALLS] \n"
    assert meaning(fed(Parser(plain, stem="r"), written)) == [text(written)]


def test_special_tokens_tell_a_family_that_its_template_does_not():
    template = "List of tools: {{ tools }}"
    assert detect(template, "<|tool_call_start|>").calls is LFM
    assert detect(template).calls is LLAMA
    assert detect(HERMES, "<|tool_call_start|>").calls.family == "hermes"


arguments_of = st.dictionaries(
    st.sampled_from(["city", "days", "tags"]),
    st.integers() | st.text('a\n<{"}', max_size=5) | st.lists(st.booleans(), max_size=2),
)


@pytest.mark.parametrize(
    "calls", [c for c in (*CALLS, LFM, LLAMA) if c.written or c.in_python], ids=lambda c: c.family
)
@given(arguments_of, arguments_of)
def test_a_call_written_for_a_family_is_read_as_it(calls, first, second):
    """What history is written with where a template leaves it out, and what grammars hold to."""
    names = ("get_weather", "time")
    both = zip(names, map(json.dumps, (first, second)), strict=True)
    written = [ToolCall(id="x", name=name, arguments=said) for name, said in both]
    untyped = [Tool(name=name) for name in names]
    reader = Parser(Syntax(calls=calls), stem="r", tools=untyped)
    said = meaning(fed(reader, [all_spelled(written, calls)]))
    assert [one[:2] for one in said] == [("call", name) for name in names]
    if calls.written is None or calls.written.parameter is None:
        assert [json.loads(one[2]) for one in said] == [first, second]


@pytest.mark.parametrize("calls", [c for c in (*CALLS, LLAMA) if c.written], ids=lambda c: c.family)
def test_a_call_written_for_a_family_is_what_its_grammar_allows(calls):
    from llguidance import LLMatcher, LLTokenizer

    tokens = LLTokenizer(tokenizer_json(), eos_token=[0])
    constraint = Constraint(syntax=calls.written, special=Vocabulary(tokenizer_json()).marks)
    grammar = constraint.grammar(None, TOOLS, ToolChoice(mode="required"))
    call = ToolCall(id="x", name="get_weather", arguments='{"city": "Paris", "days": 3}')
    text = all_spelled([call], calls)
    matcher = LLMatcher(tokens, grammar, log_level=0)
    assert matcher.consume_tokens(tokens.tokenize_str(text))
    assert matcher.is_accepting()


@pytest.mark.parametrize(
    ("schema", "written", "is_text"),
    [({}, "[" * 50_000, True), ({"enum": 5}, "1", False), ({"enum": ["1"]}, "1", True)],
    ids=["deep", "odd", "text"],
)
def test_a_value_is_read_however_deep_it_nests_and_odd_its_schema_is(schema, written, is_text):
    tool = Tool(name="go", parameters={"properties": {"a": schema}})
    value = f"<parameter=a>\n{written}\n</parameter>"
    said = f"<tool_call>\n<function=go>\n{value}\n</function>\n</tool_call>"
    events = fed(parser(CODER, tools=(tool,)), [said])
    arguments = "".join(e.arguments for e in events if isinstance(e, ToolCallDelta))
    assert (json.loads(arguments) == {"a": written if is_text else json.loads(written)}) is True
