"""Conversations in one order: system first and once, results behind their calls."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.chat.request import Image, Message, Text, Thinking, ToolCall, ToolResult
from cortex.chat.turns import merged, normalised


def turn(role, *parts):
    return Message(role=role, parts=tuple(Text(p) if isinstance(p, str) else p for p in parts))


def system(*parts):
    return turn("system", *parts)


def user(*parts):
    return turn("user", *parts)


def assistant(*parts):
    return turn("assistant", *parts)


def calls(*ids):
    return assistant(*(ToolCall(id=one, name=f"tool_{one}") for one in ids))


def results(**texts):
    parts = (ToolResult(call_id=i, parts=(Text(t),)) for i, t in texts.items())
    return turn("tool", *parts)


def reminder(text):
    return f"<system-reminder>\n{text}\n</system-reminder>"


def written(messages):
    """Return turns as short tuples."""
    said = []
    for message in messages:
        (first, *_) = message.parts or (None,)
        if isinstance(first, ToolResult):
            said.append(("tool", first.call_id, first.text))
        elif any(isinstance(part, ToolCall) for part in message.parts):
            said.append(("calls", *(p.id for p in message.parts if isinstance(p, ToolCall))))
        else:
            said.append((message.role, message.text))
    return said


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([system("a"), system("b"), user("x")], [("system", "a\nb"), ("user", "x")]),
        (
            [user("x"), system("a")],
            [("user", f"x\n\n{reminder('a')}")],
        ),
        (
            [user("x"), assistant("y"), system("a"), user("z")],
            [("user", "x"), ("assistant", "y"), ("user", f"{reminder('a')}\n\nz")],
        ),
        (
            [user("x"), calls("1"), results(**{"1": "r"}), system("a")],
            [("user", "x"), ("calls", "1"), ("tool", "1", "r"), ("user", reminder("a"))],
        ),
        (
            [user("x"), system("a"), user("z")],
            [("user", f"x\n\n{reminder('a')}"), ("user", "z")],
        ),
        (
            [
                user("x"),
                calls("1", "2"),
                user("first"),
                results(**{"2": "b"}),
                results(**{"1": "a"}),
            ],
            [
                ("user", "x"),
                ("calls", "1", "2"),
                ("tool", "1", "a"),
                ("tool", "2", "b"),
                ("user", "first"),
            ],
        ),
        (
            [calls("1"), results(**{"1": "a", "9": "of nobody"}), assistant("so")],
            [("calls", "1"), ("tool", "1", "a"), ("tool", "9", "of nobody"), ("assistant", "so")],
        ),
        ([user("a"), user("b")], [("user", "a"), ("user", "b")]),
        ([], []),
    ],
)
def test_turns_come_in_one_order(turns, expected):
    assert written(normalised(turns)) == expected


def test_an_error_is_marked_in_words_and_nothing_is_an_empty_text():
    turns = [
        calls("1", "2"),
        turn("tool", ToolResult(call_id="1", parts=(Text("no file"),), is_error=True)),
        turn("tool", ToolResult(call_id="2")),
    ]
    assert written(normalised(turns))[1:] == [
        ("tool", "1", "[tool error] no file"),
        ("tool", "2", ""),
    ]


def test_images_of_a_result_are_shown_by_the_user_after_all_results():
    image = Image(url="data:image/png;base64,AA==")
    turns = [
        calls("1", "2"),
        turn("tool", ToolResult(call_id="1", parts=(Text("a picture"), image))),
        turn("tool", ToolResult(call_id="2", parts=(Text("b"),))),
        user("what is it?"),
    ]
    _, first, second, shown = normalised(turns)
    assert (first.parts[0].text, second.parts[0].text) == ("a picture", "b")
    assert shown.role == "user"
    assert image in shown.parts
    assert shown.text == "[images in the result of tool_1, call 1]\n\n\nwhat is it?"


def test_turns_of_one_role_are_merged_and_tools_are_not():
    turns = [
        user("a"),
        user("b"),
        assistant(Thinking("hm"), "c"),
        calls("1"),
        results(**{"1": "x"}),
    ]
    first, second, tool = merged(turns)
    assert first.text == "a\n\nb"
    assert [type(part) for part in second.parts] == [Thinking, Text, ToolCall]
    assert tool.role == "tool"


texts = st.text("ab", max_size=2)
results_of = st.builds(
    ToolResult,
    call_id=st.sampled_from("123"),
    parts=st.lists(st.builds(Text, texts) | st.just(Image(url="u")), max_size=2).map(tuple),
    is_error=st.booleans(),
)
conversations = st.lists(
    st.builds(user, texts)
    | st.builds(system, texts)
    | st.builds(assistant, texts)
    | st.lists(st.sampled_from("123"), min_size=1, unique=True).map(lambda ids: calls(*ids))
    | st.builds(lambda result: turn("tool", result), results_of),
    max_size=8,
)


@given(conversations)
def test_what_is_normalised_stays_as_it_is(turns):
    once = normalised(turns)
    assert normalised(once) == once
    assert all(one.role != "system" for one in once[1:])


@given(conversations, st.integers(0, 8))
def test_a_conversation_that_goes_on_with_the_assistant_begins_as_it_was(turns, at):
    """Whatever comes after the assistant's next turn leaves what was before it as it was."""
    before, after = turns[:at], turns[at:]
    going_on = normalised([*before, assistant("so"), *after])
    assert going_on[: len(normalised(before))] == normalised(before)
