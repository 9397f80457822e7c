"""What a client of one dialect gets from a server that speaks another."""

from __future__ import annotations

import json
from itertools import permutations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.chat.events import (
    ChatEvent,
    Failed,
    Finished,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStarted,
)
from cortex.chat.request import ChatRequest, Image, Message, Text, Thinking, ToolCall, ToolResult
from cortex.chat.turns import merged, normalised
from cortex.dialects.anthropic_messages import AnthropicMessages
from cortex.dialects.openai import effort_of
from cortex.dialects.openai_chat import OpenAIChat
from cortex.dialects.openai_responses import OpenAIResponses
from tests.dialects.test_anthropic_client import bodies
from tests.dialects.test_anthropic_stream import answers

DIALECTS = {
    "openai-chat": OpenAIChat(),
    "openai-responses": OpenAIResponses(),
    "anthropic-messages": AnthropicMessages(),
}
each_pair = pytest.mark.parametrize(("theirs", "ours"), [*permutations(DIALECTS, 2)])
HI = Message(role="user", parts=(Text("hi"),))
ASK = ChatRequest(id="r1", model="m", messages=(HI,), stream=True, include_usage=True)


def asked(name: str) -> ChatRequest:
    """Return a request as the dialect reads it, with what its encoder needs."""
    dialect = DIALECTS[name]
    body = dialect.client.render_request(ASK)
    return attrs.evolve(dialect.parse_request(body, "r1"), include_usage=True)


def streamed(name: str, events: list[ChatEvent]) -> bytes:
    encoder = DIALECTS[name].encoder(asked(name), 1)
    return b"".join(encoder.feed(event) for event in events)


def decoded(name: str, stream: bytes, cuts: list[int]) -> list[ChatEvent]:
    decoder = DIALECTS[name].client.decoder(asked(name))
    came, start = [], 0
    for end in [*sorted(cuts), len(stream)]:
        came += decoder.feed(stream[start:end])
        start = max(start, end)
    return [event for _, event in (*came, *decoder.end())]


def kept(events: list[ChatEvent]) -> list[object]:
    """Return what every dialect can say of an answer: deltas put together, a call at its start."""
    said: list[object] = []
    calls: list[list[str]] = []
    for event in events:
        match event:
            case TextDelta(text) | ThinkingDelta(text):
                if said and isinstance(before := said[-1], type(event)):
                    said[-1] = type(event)(before.text + text)
                elif text:
                    said.append(type(event)(text))
            case ToolCallStarted():
                calls.append([event.id, event.name, ""])
                said.append(calls[-1])
            case ToolCallDelta(index=index, arguments=arguments):
                calls[index][2] += arguments
            case Finished():
                said.append(attrs.evolve(event, stop_string=None))
            case Failed(error):
                said.append(error.message)
    for call in calls:
        call[2] = "" if call[2] == "{}" else call[2]  # an empty object is no arguments
    return said


@each_pair
@given(events=answers(), data=st.data())
def test_an_answer_says_the_same_in_the_clients_dialect(theirs, ours, events, data):
    upstream = streamed(theirs, events)
    cuts = data.draw(st.lists(st.integers(0, len(upstream)), max_size=5))
    client = streamed(ours, decoded(theirs, upstream, cuts))

    assert kept(decoded(ours, client, [])) == kept(events)


def seen(turn: Message) -> tuple[object, ...]:
    """Return what a chat template gets to see of a turn, but for the lines between its texts."""
    thoughts = "".join(part.text for part in turn.parts if isinstance(part, Thinking))
    images = [part.url for part in turn.parts if isinstance(part, Image)]
    calls = [
        (part.id, part.name, json.loads(part.arguments or "{}"))
        for part in turn.parts
        if isinstance(part, ToolCall)
    ]
    results = [(part.call_id, part.text) for part in turn.parts if isinstance(part, ToolResult)]
    return turn.role, turn.text.replace("\n", ""), thoughts, images, calls, results


def prompt(request: ChatRequest) -> list[object]:
    """Return what the model gets to see of a request."""
    tools = [(t.name, t.description, t.parameters, t.strict) for t in request.tools]
    return [*map(seen, merged(normalised(request.messages))), tools]


def wanted(request: ChatRequest) -> list[object]:
    """Return how a request wants its answer."""
    sampling, form = request.sampling, request.format
    return [
        *(sampling.temperature, sampling.top_p, sampling.max_tokens),
        request.tools and request.tool_choice,
        form and form.schema,
        "none" if request.reasoning.enabled is False else effort_of(request.reasoning),
    ]


@each_pair
@settings(max_examples=50)
@given(body=bodies)
def test_a_request_shows_the_model_the_same_in_another_dialect(theirs, ours, body):
    asked = DIALECTS[ours].parse_request(in_words_of(ours, body), "r1")
    again = DIALECTS[theirs].parse_request(DIALECTS[theirs].client.render_request(asked), "r1")

    assert prompt(again) == prompt(asked)
    assert wanted(again) == wanted(asked)


def in_words_of(name: str, body: dict) -> bytes:
    """Return a request for a message in another dialect."""
    body = {key: value for key, value in body.items() if key not in ("top_k", "stop_sequences")}
    said = json.dumps(body).encode()
    if name == "anthropic-messages":
        return said
    return DIALECTS[name].client.render_request(AnthropicMessages().parse_request(said, "r1"))
