"""Both halves against each other, whatever is said and however it is cut."""

from __future__ import annotations

import json
from itertools import pairwise

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.chat.events import (
    Failed,
    Finished,
    Started,
    TextDelta,
    ThinkingDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from cortex.chat.request import ChatRequest, Message, Text, ToolCall, ToolChoice
from cortex.errors import InvalidRequest, UnsupportedParameter, UpstreamDied, UpstreamFailed
from cortex_dialect_ollama.chat import OllamaChat
from cortex_dialect_ollama.generate import OllamaGenerate

DIALECT = OllamaChat()
ASKED = ChatRequest(
    id="r", model="m", stream=True, messages=(Message(role="user", parts=(Text("x"),)),)
)
TEXT = st.text(min_size=1, max_size=9)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
OBJECTS = st.dictionaries(st.text(max_size=5), VALUES, max_size=3)
COUNTS = st.integers(0, 10**6)
LIKELY = st.builds(
    TokenLogprob, token=TEXT, logprob=st.floats(-50, 0), data=st.binary(min_size=1, max_size=4)
)
LOGPROBS = (
    st.builds(attrs.evolve, LIKELY, top=st.lists(LIKELY, min_size=1, max_size=2).map(tuple))
    | LIKELY
)


@st.composite
def deltas(draw):
    """Draw what stands between `Started` and the end; no call is cut off."""
    said = [ThinkingDelta(text) for text in draw(st.lists(TEXT, max_size=2))]
    index = 0
    for is_call in draw(st.lists(st.booleans(), max_size=4)):
        if not is_call:
            logprobs = draw(st.lists(LOGPROBS, max_size=2))
            said.append(TextDelta(draw(TEXT), tuple(logprobs)))
            continue
        said.append(ToolCallStarted(index=index, id=draw(TEXT), name=draw(TEXT)))
        arguments = json.dumps(draw(OBJECTS))
        at = draw(st.integers(0, len(arguments)))
        pieces = [piece for piece in (arguments[:at], arguments[at:]) if piece]
        said += [ToolCallDelta(index=index, arguments=piece) for piece in pieces]
        index += 1
    return said


@st.composite
def answers(draw):
    """Draw the events of an answer."""
    said = draw(deltas())
    has_calls = any(isinstance(event, ToolCallStarted) for event in said)
    usage = Usage(prompt_tokens=draw(COUNTS), completion_tokens=draw(COUNTS))
    reason = draw(st.sampled_from(["tool_calls" if has_calls else "stop", "length"]))
    return [Started(prompt_tokens=5), *said, Finished(reason=reason, usage=usage)]


def arrived(events):
    """Return events as they arrive: the pieces of a call are one, the prompt's count comes last."""
    only = len(events) == 2
    came = [Started(prompt_tokens=events[-1].usage.prompt_tokens if only else 0)]
    for event in events[1:]:
        before = came[-1]
        if isinstance(event, ToolCallDelta) and isinstance(before, ToolCallDelta):
            came[-1] = attrs.evolve(before, arguments=before.arguments + event.arguments)
        else:
            came.append(event)
    return came


def cut(data, places):
    """Return *data* in pieces."""
    bounds = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(bounds)]


def decoded(data, places):
    decoder = DIALECT.client.decoder(ASKED)
    came = [pair for piece in cut(data, places) for pair in decoder.feed(piece)]
    came += decoder.end()
    assert all(choice == 0 for choice, _ in came)
    return [event for _, event in came]


@given(answers(), st.lists(st.integers(0, 10**6), max_size=9))
def test_a_stream_cut_anywhere_is_the_same_answer(events, places):
    encoder = DIALECT.encoder(ASKED, 1)
    data = b"".join(map(encoder.feed, events))

    assert all(json.loads(line) for line in data.splitlines())
    assert decoded(data, places) == arrived(events)


@given(answers(), st.integers(0, 10**6))
def test_a_stream_that_breaks_off_has_failed(events, place):
    encoder = DIALECT.encoder(ASKED, 1)
    data = b"".join(map(encoder.feed, events))
    data = data[: place % len(data)].rpartition(b"}\n")[0]

    came = decoded(data, ())

    assert isinstance(came[-1], Failed)
    assert isinstance(came[-1].error, UpstreamDied)


def test_the_last_line_may_do_without_a_newline():
    line = b'{"message":{"content":"hi"},"done":%b}'

    assert decoded(line % b"true", ())[1:] == [
        TextDelta("hi"),
        Finished(reason="stop", usage=Usage()),
    ]
    assert isinstance(decoded(line % b"false", ())[-1].error, UpstreamDied)
    assert isinstance(decoded(b'{"message":{"content":"hi"}', ())[-1].error, UpstreamDied)


def test_of_one_call_at_a_time_the_first_is_read():
    two = b'{"message":{"tool_calls":[{"function":{"name":"f"}},{"function":{"name":"g"}}]}}\n'
    for parallel, names in ((True, ["f", "g"]), (False, ["f"])):
        asked = attrs.evolve(ASKED, tool_choice=ToolChoice(parallel=parallel))
        came = DIALECT.client.decoder(asked).feed(two)
        assert [e.name for _, e in came if isinstance(e, ToolCallStarted)] == names


@pytest.mark.parametrize("arguments", ['{"a":', "[1]", '{},"role":"system"'])
def test_arguments_that_are_no_object_spoil_no_body(arguments):
    call = ToolCall(id="c", name="f", arguments=arguments)
    said = Message(role="assistant", parts=(call,))
    with pytest.raises(UnsupportedParameter):
        DIALECT.client.render_request(attrs.evolve(ASKED, messages=(*ASKED.messages, said)))


@given(deltas(), st.text(min_size=1))
def test_a_failure_arrives_after_what_came_before_it(said, message):
    encoder = DIALECT.encoder(ASKED, 1)
    events = [Started(prompt_tokens=5), *said, Failed(UpstreamDied(message))]
    *_, last = decoded(b"".join(map(encoder.feed, events)), ())

    assert isinstance(last, Failed)
    assert (type(last.error), last.error.message) == (UpstreamFailed, message)


@given(answers())
def test_a_body_says_what_a_stream_says(events):
    encoder = DIALECT.encoder(attrs.evolve(ASKED, stream=False), 1)
    *none, body = [encoder.feed(event) for event in events]
    streamed = DIALECT.encoder(ASKED, 1)
    lines = [json.loads(line) for line in b"".join(map(streamed.feed, events)).splitlines()]

    assert not any(none)
    whole = json.loads(body)
    messages = [line["message"] for line in lines]
    for field in ("content", "thinking"):
        assert whole["message"].get(field, "") == "".join(m.get(field, "") for m in messages)
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    assert whole["message"].get("tool_calls", []) == calls
    assert whole.get("logprobs", []) == [e for line in lines for e in line.get("logprobs", ())]
    figures = {key: value for key, value in lines[-1].items() if key != "message"}
    assert figures.items() <= whole.items()


CALL = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": TEXT, "arguments": OBJECTS})},
    optional={"id": TEXT},
)
IMAGES = st.lists(st.sampled_from(["iVBORw0KGgo=", "/9j/4AAQ", "R0lGODlh", "UklGRgAA"]), max_size=2)
WORDS = st.text(max_size=9)
MESSAGE = (
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user"]), "content": WORDS}, optional={"images": IMAGES}
    )
    | st.fixed_dictionaries(
        {"role": st.just("assistant")},
        optional={
            "content": WORDS,
            "thinking": WORDS,
            "tool_calls": st.lists(
                CALL, max_size=3, unique_by=lambda call: call.get("id", object())
            ),
        },
    )
    | st.fixed_dictionaries(
        {"role": st.just("tool"), "content": WORDS},
        optional={"tool_name": TEXT, "tool_call_id": TEXT, "images": IMAGES},
    )
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0.01, 1),
        "top_k": st.integers(-5, 100),
        "min_p": st.floats(0, 1),
        "repeat_penalty": st.floats(0.01, 10),
        "seed": st.integers(-5, 100),
        "num_predict": st.integers(-5, 100),
        "stop": st.lists(WORDS, max_size=2) | WORDS,
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "num_ctx": st.integers(1, 9999),
    },
)
BODY = st.fixed_dictionaries(
    {"model": TEXT, "messages": st.lists(MESSAGE, min_size=1, max_size=5)},
    optional={
        "options": OPTIONS,
        "format": st.sampled_from(["", "json", {"type": "object"}]),
        "think": st.sampled_from([None, True, False, "low", "medium", "high", "max"]),
        "tools": st.lists(
            st.fixed_dictionaries(
                {
                    "function": st.fixed_dictionaries(
                        {"name": TEXT}, optional={"description": WORDS, "parameters": OBJECTS}
                    )
                }
            ),
            max_size=2,
        ),
        "stream": st.booleans(),
        "logprobs": st.booleans(),
        "keep_alive": st.sampled_from(["5m", -1, 0]),
    },
)


@given(BODY)
def test_a_request_read_written_and_read_again_is_the_same(body):
    asked = DIALECT.parse_request(json.dumps(body).encode(), "r")
    again = DIALECT.parse_request(DIALECT.client.render_request(asked), "r")

    assert again == attrs.evolve(asked, stream=True)


@given(
    st.binary(max_size=200)
    | st.dictionaries(
        st.sampled_from(
            ["model", "messages", "prompt", "options", "format", "think", "images", "tools", "raw"]
        ),
        VALUES | BODY | MESSAGE | st.lists(MESSAGE),
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_bytes_ever_raise_anything_but_an_invalid_request(raw):
    for dialect in (DIALECT, OllamaGenerate()):
        try:
            dialect.parse_request(raw, "r")
        except InvalidRequest:
            continue


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_no_answer_ever_raises(raw, places):
    assert isinstance(decoded(raw, places)[-1], Failed)
