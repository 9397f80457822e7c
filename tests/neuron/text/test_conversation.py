"""A request's conversation in the words of a chat template."""

from __future__ import annotations

import attrs
import pytest

from cortex.chat.request import Image, Reasoning, Text, Thinking, Tool, ToolCall, ToolResult
from cortex.chat.turns import images_of, refuse_images
from cortex.errors import VisionUnsupported
from cortex.neuron.text.conversation import (
    thinking_arguments,
    turns_for,
    with_schemas,
    written_tools,
    written_turns,
)
from cortex.neuron.text.families import detect
from cortex.neuron.text.template import Abilities
from tests.chat.test_turns import assistant, results, system, turn, user
from tests.neuron.text.answers import GRANITE, HERMES, KIMI, MISTRAL

ALL = Abilities()
CALL = ToolCall(id="call_1", name="look", arguments='{"at": ["sky"]}')
WAIT = ToolCall(id="call_2", name="wait")
TALK = [
    system("be brief"),
    user("x"),
    assistant(Thinking("hm"), "I look.", CALL, WAIT),
    results(call_2="ok", call_1="blue"),
]


def lacking(**abilities):
    return attrs.evolve(ALL, **abilities)


def turns_of(messages, abilities, calls=None):
    return written_turns(turns_for(messages, abilities, calls), abilities, calls)


def look(arguments, call_id="call_1"):
    function = {"name": "look", "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def wait(arguments, call_id="call_2"):
    function = {"name": "wait", "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def result(call_id, name, content):
    return {"role": "tool", "tool_call_id": call_id, "name": name, "content": content}


def test_turns_are_written_as_transformers_wants_them():
    assert turns_of(TALK, ALL) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "x"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "hm",
            "thinking": "hm",
            "tool_calls": [look({"at": ["sky"]}), wait({})],
        },
        result("call_1", "look", "blue"),
        result("call_2", "wait", "ok"),
    ]


def test_a_turn_without_content_is_empty_text():
    assert turns_of([assistant(CALL), results(call_1="")], ALL) == [
        {"role": "assistant", "content": "", "tool_calls": [look({"at": ["sky"]})]},
        result("call_1", "look", ""),
    ]


@pytest.mark.parametrize("arguments", ["[1]", "{'at'", "null"])
def test_arguments_that_are_no_object_stay_as_they_are(arguments):
    turns = turns_of([assistant(attrs.evolve(CALL, arguments=arguments))], ALL)
    assert turns[0]["tool_calls"] == [look(arguments)]


def test_arguments_are_text_for_who_wants_text():
    turns = turns_of([assistant(CALL, WAIT)], lacking(objects=False))
    assert turns[0]["tool_calls"] == [look('{"at": ["sky"]}'), wait("{}")]


def test_content_is_in_parts_for_who_wants_parts():
    talk = [user("a", "b"), assistant(CALL), results(call_1="c")]
    assert [one["content"] for one in turns_of(talk, lacking(parts=True))] == [
        [{"type": "text", "text": "ab"}],
        [{"type": "text", "text": ""}],
        [{"type": "text", "text": "c"}],
    ]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([system("s"), user("x")], [("user", "s\n\nx")]),
        ([system("s"), assistant("y")], [("user", "s"), ("assistant", "y")]),
        ([system("s")], [("user", "s")]),
        ([user("x")], [("user", "x")]),
    ],
)
def test_what_the_system_says_the_user_says_where_there_is_no_system(turns, expected):
    written = turns_of(turns, lacking(system=False))
    assert [(one["role"], one["content"]) for one in written] == expected


def test_turns_in_a_row_are_one_only_where_they_have_to_be():
    talk = [user("a"), user("b"), assistant("c"), assistant("d")]
    assert [one["content"] for one in turns_of(talk, ALL)] == ["a", "b", "c", "d"]
    merged = turns_of(talk, lacking(in_a_row=False))
    assert [one["content"] for one in merged] == ["a\n\nb", "c\n\nd"]


def test_what_the_user_says_behind_results_is_in_the_last_where_it_cannot_be_its_own_turn():
    talk = [*TALK, user("now"), assistant("y"), user("z")]
    written = turns_of(talk, lacking(user_after_results=False))
    assert [one["content"] for one in written[3:]] == ["blue", "ok\n\nnow", "y", "z"]
    written = turns_of(
        [assistant(CALL), results(call_1=""), user("now")], lacking(user_after_results=False)
    )
    assert [one["content"] for one in written] == ["", "now"]


def test_calls_come_one_by_one_with_their_results_where_they_have_to():
    written = turns_of([*TALK, user("so?")], lacking(several_calls=False))
    assert [(one["role"], one["content"]) for one in written[2:]] == [
        ("assistant", "I look."),
        ("tool", "blue"),
        ("assistant", ""),
        ("tool", "ok"),
        ("user", "so?"),
    ]
    assert (written[2]["tool_calls"], written[4]["tool_calls"]) == (
        [look({"at": ["sky"]})],
        [wait({})],
    )
    assert "reasoning_content" not in written[4]


def test_calls_without_results_are_there_too():
    written = turns_of([user("x"), assistant(CALL, WAIT)], lacking(several_calls=False))
    assert [one.get("tool_calls") for one in written[1:]] == [[look({"at": ["sky"]})], [wait({})]]


def test_text_beside_calls_is_thought_where_they_do_not_go_together():
    written = turns_of(TALK, lacking(thoughts_and_text=False))[2]
    assert (written["thinking"], written["content"]) == ("hm\n\nI look.", "")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            GRANITE,
            (
                'I look.<|tool_call|>[{"name": "look", "arguments": {"at": ["sky"]}}, '
                '{"name": "wait", "arguments": {}}]'
            ),
        ),
        (
            "<function=x><parameter=y>",
            (
                'I look.<tool_call>\n<function=look>\n<parameter=at>\n["sky"]\n</parameter>\n'
                "</function>\n</tool_call>\n<tool_call>\n<function=wait>\n</function>\n</tool_call>"
            ),
        ),
    ],
)
def test_calls_are_text_where_a_template_leaves_them_out(template, text):
    written = turns_of(TALK, lacking(calls=False), detect(template).calls)[2]
    assert written["content"] == text
    assert "tool_calls" not in written


def test_ids_are_as_the_family_wants_them():
    def ids(template):
        turns = turns_of(
            [*TALK, assistant(attrs.evolve(WAIT, id="3"))], ALL, detect(template).calls
        )
        return [
            *(call["id"] for one in turns for call in one.get("tool_calls", ())),
            *(one["tool_call_id"] for one in turns if one["role"] == "tool"),
        ]

    assert ids(HERMES) == ["call_1", "call_2", "3", "call_1", "call_2"]
    assert ids(KIMI)[:3] == ["functions.look:0", "functions.wait:1", "functions.wait:2"]
    assert ids(KIMI)[3:] == ids(KIMI)[:2]
    nine = ids(MISTRAL)
    assert all(len(one) == 9 and one.isalnum() for one in nine)
    assert (len(set(nine)), nine[3:]) == (3, nine[:2])


IMAGE, OTHER = (Image(url=f"data:image/png;base64,{n}") for n in ("AA==", "AQ=="))


def test_an_image_is_refused_by_its_place():
    with pytest.raises(VisionUnsupported, match="model 'm' sees no images") as caught:
        refuse_images([user("x"), user("y", IMAGE)], "m")
    assert caught.value.param == "messages[1].content[1]"
    seen = turn("tool", ToolResult(call_id="call_1", parts=(IMAGE,)))
    with pytest.raises(VisionUnsupported) as caught:
        refuse_images([*TALK[:3], seen], "m")
    assert caught.value.param == "messages[3].content[0]"
    refuse_images(TALK, "m")


def test_images_stand_in_what_the_user_says_where_they_stood():
    (said,) = turns_of([user("a", "b", IMAGE, OTHER, "c")], ALL)
    texts = [{"type": "text", "text": text} for text in ("ab", "c")]
    image = {"type": "image"}
    assert said["content"] == [texts[0], image, image, texts[1]]
    assert images_of(turns_for([user(OTHER), user("a", IMAGE)], ALL)) == [OTHER, IMAGE]


@pytest.mark.parametrize(
    ("abilities", "contents"),
    [
        (
            {},
            [
                "[tool error] ",
                [
                    {"type": "text", "text": "[images in the result of look, call call_1]\n"},
                    {"type": "image"},
                    {"type": "text", "text": "\n\nso?"},
                ],
            ],
        ),
        (
            {"images_in_results": True},
            [[{"type": "text", "text": "[tool error] "}, {"type": "image"}], "so?"],
        ),
        (
            {"images_in_results": True, "user_after_results": False},
            [[{"type": "text", "text": "[tool error] \n\nso?"}, {"type": "image"}]],
        ),
    ],
)
def test_images_in_results_stay_there_or_go_to_the_user(abilities, contents):
    result = ToolResult(call_id="call_1", parts=(IMAGE,), is_error=True)
    talk = [user("x"), assistant(CALL), turn("tool", result), user("so?")]
    turns = turns_for(talk, lacking(**abilities))
    assert [one["content"] for one in written_turns(turns, ALL)][2:] == contents
    assert images_of(turns) == [IMAGE]


def test_tools_are_written_with_a_schema_whatever_they_came_with():
    schema = {"type": "object", "properties": {"a": {}}, "$schema": "x"}
    tools = [
        Tool(name="a", description="A.", parameters=schema, strict=True),
        Tool(name="b"),
        Tool(name="c", kind="custom"),
    ]
    a, b, c = (one["function"] for one in written_tools(with_schemas(tools)))
    assert a == {"name": "a", "description": "A.", "parameters": schema}
    assert b["parameters"] == {"type": "object", "properties": {}}
    assert c["parameters"]["required"] == ["input"]


ON, OFF = ({"enable_thinking": on, "thinking": on} for on in (True, False))


@pytest.mark.parametrize(
    ("reasoning", "expected"),
    [
        ({}, {}),
        ({"enabled": False}, OFF),
        ({"enabled": True}, ON),
        ({"effort": "none"}, OFF),
        ({"effort": "minimal"}, {**ON, "reasoning_effort": "low"}),
        ({"effort": "high"}, {**ON, "reasoning_effort": "high"}),
        ({"enabled": False, "effort": "high"}, OFF),
        (
            {"enabled": True, "budget_tokens": 1999},
            {**ON, "reasoning_effort": "low", "thinking_budget": 1999},
        ),
        ({"budget_tokens": 2000}, {**ON, "reasoning_effort": "medium", "thinking_budget": 2000}),
        ({"budget_tokens": 8000}, {**ON, "reasoning_effort": "high", "thinking_budget": 8000}),
        (
            {"budget_tokens": 9000, "effort": "low"},
            {**ON, "reasoning_effort": "low", "thinking_budget": 9000},
        ),
        ({"enabled": False, "budget_tokens": 9000}, OFF),
    ],
)
def test_how_much_to_think_is_told_in_the_words_of_templates(reasoning, expected):
    assert thinking_arguments(Reasoning(**reasoning)) == expected


def test_parts_of_a_turn_are_joined_as_they_are():
    assert turns_of([user("a\n", "b")], ALL)[0]["content"] == "a\nb"
    assert turns_of([turn("user", Text(""))], ALL)[0]["content"] == ""
