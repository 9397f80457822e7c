"""Anthropic Messages, the answers: every stream keeps the order clients rely on."""

from __future__ import annotations

import json
from collections.abc import Sequence

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.chat.events import (
    ChatEvent,
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
from cortex.chat.request import ChatRequest
from cortex.dialects.anthropic_messages import AnthropicMessages
from cortex.dialects.signature import carried_by, sign
from cortex.errors import NoNodeAvailable, UpstreamDied

DIALECT = AnthropicMessages()
SHOWN = ChatRequest(id="r1", model="m", stream=True, private=False)
WITHHELD = attrs.evolve(SHOWN, private=True)
KINDS = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}
FIELDS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


def encoded(request: ChatRequest, events: Sequence[ChatEvent]) -> bytes:
    encoder = DIALECT.encoder(request, 1)
    return b"".join(encoder.feed(event) for event in events)


def whole(request: ChatRequest, events: Sequence[ChatEvent]) -> dict:
    encoder = DIALECT.encoder(attrs.evolve(request, stream=False), 1)
    *nothing, body = [encoder.feed(event) for event in events]
    assert not any(nothing)
    return json.loads(body)


def events_of(stream: bytes) -> list[dict]:
    """Split a stream; the name of each event is its type."""
    assert stream.endswith(b"\n\n")
    found = []
    for event in stream.decode().removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        assert name.startswith("event: ")
        assert data.startswith("data: ")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name.removeprefix("event: ") == found[-1]["type"]
    return found


class Machine:
    """
    A client that trusts nothing: it takes each event only where it may stand.

    Attributes:
        message: What came, as one message.
        error: What broke it.
    """

    def __init__(self) -> None:
        self.message: dict | None = None
        self.error: dict | None = None
        self._block: dict | None = None
        self._json = ""
        self._is_ending = self._is_over = False

    def take(self, event: dict) -> None:
        assert not self._is_over
        getattr(self, f"_{event.pop('type')}")(**event)

    def _ping(self) -> None:
        pass

    def _error(self, error: dict) -> None:
        assert error.keys() == {"type", "message"}
        self.error, self._is_over = error, True

    def _message_start(self, message: dict) -> None:
        assert self.message is None
        assert message["content"] == []
        assert (message["stop_reason"], message["stop_sequence"]) == (None, None)
        assert (message["type"], message["role"]) == ("message", "assistant")
        assert message["usage"]["input_tokens"] >= 0
        self.message = message

    def _content_block_start(self, index: int, content_block: dict) -> None:
        assert self.message is not None
        assert self._block is None
        assert not self._is_ending
        assert index == len(self.message["content"])
        kind = content_block["type"]
        rest = {key: value for key, value in content_block.items() if key not in ("id", "name")}
        assert (
            rest
            == {
                "text": {"type": "text", "text": ""},
                "thinking": {"type": "thinking", "thinking": "", "signature": ""},
                "tool_use": {"type": "tool_use", "input": {}},
            }[kind]
        )
        self._block, self._json = content_block, ""
        self.message["content"].append(content_block)

    def _content_block_delta(self, index: int, delta: dict) -> None:
        assert self._block is not None
        assert index == len(self.message["content"]) - 1
        kind = delta.pop("type")
        if kind == "signature_delta":
            assert self._block["signature"] == ""
            assert delta["signature"]
            self._block.update(delta)
            return
        assert kind == KINDS[self._block["type"]]
        assert not self._block.get("signature")
        [(field, more)] = delta.items()
        assert field == FIELDS[kind]
        assert more
        if kind == "input_json_delta":
            self._json += more
        else:
            self._block[field] += more

    def _content_block_stop(self, index: int) -> None:
        assert index == len(self.message["content"]) - 1
        assert self._block is not None
        if self._block["type"] == "thinking":
            assert self._block["signature"]
        if self._json:
            self._block["input"] = self._json
        self._block = None

    def _message_delta(self, delta: dict, usage: dict) -> None:
        assert self.message is not None
        assert self._block is None
        assert not self._is_ending
        assert delta.keys() == {"stop_reason", "stop_sequence"}
        self.message.update(delta)
        self.message["usage"] = usage
        self._is_ending = True

    def _message_stop(self) -> None:
        assert self._is_ending
        self._is_over = True


def checked(stream: bytes) -> Machine:
    machine = Machine()
    for event in events_of(stream):
        machine.take(event)
    assert machine._is_over
    return machine


texts = st.text(min_size=1, max_size=5)
usages = st.builds(
    lambda prompt, cached, completion, reasoning: Usage(
        prompt_tokens=prompt + cached,
        cached_tokens=cached,
        completion_tokens=completion + reasoning,
        reasoning_tokens=reasoning,
    ),
    *(st.integers(0, 1000) for _ in range(4)),
)


@st.composite
def answers(draw) -> list[ChatEvent]:
    """Draw the events of an answer, in any order the engine may say them."""
    events: list[ChatEvent] = []
    calls = 0
    for kind in draw(st.lists(st.sampled_from(["think", "text", "call", "empty"]), max_size=8)):
        if kind == "think":
            events += map(ThinkingDelta, draw(st.lists(texts, max_size=3)))
        elif kind == "text":
            events += map(TextDelta, draw(st.lists(texts, max_size=3)))
        elif kind == "empty":
            events.append(TextDelta("", (TokenLogprob(token="a", logprob=-1.0),)))
        else:
            call_id = f"toolu_{calls}{draw(texts)}"
            events.append(ToolCallStarted(index=calls, id=call_id, name=draw(texts)))
            deltas = draw(st.lists(texts, max_size=3))
            events += [ToolCallDelta(index=calls, arguments=more) for more in deltas]
            calls += 1
    usage = draw(usages)
    if draw(st.booleans()):
        end = Failed(UpstreamDied(draw(texts)))
    else:
        stop_string = draw(st.none() | texts)
        cut = draw(st.sampled_from(["length", "content_filter", None]))
        reason = cut or ("tool_calls" if calls else "stop")
        stop = stop_string if reason == "stop" else None
        end = Finished(reason=reason, usage=usage, stop_string=stop)
    return [Started(prompt_tokens=usage.prompt_tokens), *events, end]


@given(answers(), st.booleans())
def test_every_stream_keeps_the_order(events, is_withheld):
    machine = checked(encoded(WITHHELD if is_withheld else SHOWN, events))

    assert (machine.error is not None) == isinstance(events[-1], Failed)


@given(answers(), st.data())
def test_a_ping_may_stand_anywhere(events, data):
    encoder = DIALECT.encoder(SHOWN, 1)
    said = encoder.keep_alive()
    for event in events:
        said += encoder.feed(event)
        if data.draw(st.booleans()) and not isinstance(event, Finished | Failed):
            said += encoder.keep_alive()

    checked(said)


@given(answers(), st.booleans())
def test_a_whole_answer_is_the_stream_put_together(events, is_withheld):
    request = WITHHELD if is_withheld else SHOWN
    if isinstance(events[-1], Failed):
        return
    streamed = checked(encoded(request, events)).message
    for block in streamed["content"]:
        if block["type"] == "tool_use":
            block["input"] = object_in(block["input"])

    assert whole(request, events) == streamed


def object_in(arguments: str | dict) -> dict:
    try:
        found = json.loads(arguments)
    except (ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def finished(**more) -> Finished:
    return Finished(**{"reason": "stop", "usage": Usage(), **more})


CALL = [ToolCallStarted(index=0, id="c", name="f")]


@pytest.mark.parametrize(
    ("events", "end", "reason", "sequence"),
    [
        ([], {}, "end_turn", None),
        ([TextDelta("x")], {}, "end_turn", None),
        ([TextDelta("x")], {"stop_string": "END"}, "stop_sequence", "END"),
        ([TextDelta("x")], {"stop_string": ""}, "stop_sequence", ""),
        ([TextDelta("x")], {"reason": "length"}, "max_tokens", None),
        ([TextDelta("x")], {"reason": "content_filter"}, "refusal", None),
        (CALL, {"reason": "tool_calls"}, "tool_use", None),
        (CALL, {}, "tool_use", None),
        (CALL, {"stop_string": "END"}, "tool_use", None),
        (CALL, {"reason": "length"}, "max_tokens", None),
    ],
)
def test_the_reason_of_an_end(events, end, reason, sequence):
    events = [Started(prompt_tokens=1), *events, finished(**end)]
    answer = whole(SHOWN, events)

    assert (answer["stop_reason"], answer["stop_sequence"]) == (reason, sequence)
    assert checked(encoded(SHOWN, events)).message["stop_reason"] == reason


def test_an_empty_answer_is_an_answer():
    assert whole(SHOWN, [Started(prompt_tokens=7), finished()]) == {
        "id": "msg_r1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 0,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        },
    }


def test_cached_tokens_are_counted_apart_and_thoughts_with_the_answer():
    usage = Usage(prompt_tokens=100, cached_tokens=60, completion_tokens=9, reasoning_tokens=4)
    events = [Started(prompt_tokens=100), finished(usage=usage)]
    start, delta, _ = events_of(encoded(SHOWN, events))

    assert start["message"]["usage"]["input_tokens"] == 100
    assert delta["usage"] == {
        "input_tokens": 40,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 60,
        "output_tokens": 9,
        "output_tokens_details": {"thinking_tokens": 4},
    }


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ('{"a": {"b": [1, 2.5, null]}}', {"a": {"b": [1, 2.5, None]}}),
        ("", {}),
        ("{}", {}),
        ('{"a": "cut o', {}),
        ("[1]", {}),
        ("x", {}),
        ('{"a": "\\ud800"}', {}),
        ('{"a":' * 5000, {}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_input_of_a_call_is_an_object_in_a_whole_answer(arguments, read):
    deltas = [ToolCallDelta(index=0, arguments=arguments)] if arguments else []
    [block] = whole(SHOWN, [Started(prompt_tokens=1), *CALL, *deltas, finished()])["content"]

    assert block == {"type": "tool_use", "id": "c", "name": "f", "input": read}


THOUGHTS = [Started(prompt_tokens=1), ThinkingDelta("Hm, "), ThinkingDelta("grün?")]


def test_withheld_thoughts_travel_in_the_signature():
    events = [*THOUGHTS, TextDelta("Yes."), finished()]
    streamed = checked(encoded(WITHHELD, events)).message["content"]

    assert b"thinking_delta" not in encoded(WITHHELD, events)
    assert whole(WITHHELD, events)["content"] == streamed
    assert [block["type"] for block in streamed] == ["thinking", "text"]
    assert streamed[0]["thinking"] == ""
    assert carried_by(streamed[0]["signature"]) == "Hm, grün?"


def test_shown_thoughts_are_not_sent_twice():
    [block] = checked(encoded(SHOWN, [*THOUGHTS, finished()])).message["content"]

    assert block == {"type": "thinking", "thinking": "Hm, grün?", "signature": sign()}
    assert sign()


def test_a_client_that_sees_no_thoughts_sees_that_the_model_is_alive():
    encoder = DIALECT.encoder(WITHHELD, 1)
    said = [encoder.feed(event) for event in [*THOUGHTS, *[ThinkingDelta("x")] * 100]]

    assert sum(b"event: ping" in piece for piece in said) == 3


@given(st.text())
def test_a_signature_carries_any_text(text):
    assert carried_by(sign(text)) == text


@pytest.mark.parametrize("foreign", ["", "x", "EqQBCg==", "ErUB\n", "grün", "Y29ydGV4/w=="])
def test_a_foreign_signature_says_nothing(foreign):
    assert carried_by(foreign) == ""


def test_a_stream_that_fails_ends_with_the_error_alone():
    events = [Started(prompt_tokens=1), TextDelta("Hal"), Failed(UpstreamDied("the node died"))]
    stream = encoded(SHOWN, events)

    assert checked(stream).error == {"type": "api_error", "message": "the node died"}
    assert b"content_block_stop" not in stream
    assert b"message_stop" not in stream
    assert DIALECT.render_stream_error(NoNodeAvailable("none")) == (
        b'event: error\ndata: {"type":"error","error":'
        b'{"type":"overloaded_error","message":"none"}}\n\n'
    )
