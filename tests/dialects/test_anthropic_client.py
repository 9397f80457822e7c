"""Anthropic Messages, the client half: what servers say, and round trips with our own."""

from __future__ import annotations

import json

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
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from cortex.chat.request import (
    ChatRequest,
    Image,
    JsonFormat,
    Message,
    Reasoning,
    Sampling,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from cortex.dialects.anthropic_messages import AnthropicMessages
from cortex.dialects.anthropic_messages.client import MAX_TOKENS
from cortex.dialects.signature import sign
from cortex.errors import (
    ContextLengthExceeded,
    CortexError,
    InvalidRequest,
    ModelNotFound,
    NoNodeAvailable,
    NotAuthenticated,
    PermissionDenied,
    RateLimited,
    RequestTooLarge,
    UnsupportedParameter,
    UpstreamDied,
    UpstreamFailed,
)
from tests.dialects.test_anthropic_stream import SHOWN, WITHHELD, answers, encoded, texts

DIALECT = AnthropicMessages()
CLIENT = DIALECT.client
HI = Message(role="user", parts=(Text("hi"),))
ASK = ChatRequest(id="r1", model="m", messages=(HI,), sampling=Sampling(max_tokens=64))


def rendered(**more: object) -> dict:
    return json.loads(CLIENT.render_request(attrs.evolve(ASK, **more)))


def turns(*messages: Message) -> list[dict]:
    return rendered(messages=messages)["messages"]


def decoded(stream: bytes, cuts: list[int] | None = None, **more: object) -> list[ChatEvent]:
    decoder = CLIENT.decoder(attrs.evolve(ASK, **more))
    events, start = [], 0
    for end in [*sorted(cuts or []), len(stream)]:
        events += decoder.feed(stream[start:end])
        start = max(start, end)
    events += decoder.end()
    assert {choice for choice, _ in events} <= {0}
    return [event for _, event in events]


# Round trips.


def kept(events: list[ChatEvent]) -> list[object]:
    """Return what of an answer a stream can say."""
    has_calls = any(isinstance(event, ToolCallStarted) for event in events)
    said: list[object] = []
    for event in events:
        match event:
            case TextDelta(""):
                pass  # log probabilities do not travel
            case TextDelta(text):
                said.append(TextDelta(text))
            case Finished(stop_string=stop) if stop is not None and has_calls:
                said.append(attrs.evolve(event, stop_string=None))
            case Failed(error):
                said.append(error.message)  # its class is what its status makes of it
            case _:
                said.append(event)
    return said


@given(answers(), st.data())
def test_an_answer_cut_anywhere_is_read_as_it_was_said(events, data):
    stream = encoded(SHOWN, events)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=10))

    assert kept(decoded(stream, cuts)) == kept(events)


@given(answers(), st.data())
def test_withheld_thoughts_come_at_the_end_of_their_block(events, data):
    stream = encoded(WITHHELD, events)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=10))
    if isinstance(events[-1], Failed):
        return  # thoughts of the open block are lost with it

    assert kept(decoded(stream, cuts)) == kept(together(events))


def together(events: list[ChatEvent]) -> list[ChatEvent]:
    """Join adjacent thoughts."""
    said: list[ChatEvent] = []
    for event in events:
        if isinstance(event, TextDelta) and not event.text:
            continue
        if isinstance(event, ThinkingDelta) and said and isinstance(said[-1], ThinkingDelta):
            said[-1] = ThinkingDelta(said[-1].text + event.text)
        else:
            said.append(event)
    return said


words = st.text(min_size=1, max_size=8)
objects = st.dictionaries(words, st.none() | st.integers() | words, max_size=2)
pictures = st.sampled_from(
    [
        {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
        {"type": "url", "url": "https://a/b.png"},
    ]
)
text_blocks = st.builds(lambda text: {"type": "text", "text": text}, words)
shown_blocks = (
    text_blocks
    | st.builds(lambda source: {"type": "image", "source": source}, pictures)
    | st.builds(
        lambda title, data: {
            "type": "document",
            "title": title,
            "source": {"type": "text", "data": data},
        },
        *(st.none() | words, words),
    )
)
results = st.builds(
    lambda call, content, is_error: {
        "type": "tool_result",
        "tool_use_id": call,
        "content": content,
        "is_error": is_error,
    },
    *(words, st.none() | words | st.lists(shown_blocks, max_size=3), st.booleans()),
)
said_blocks = (
    text_blocks
    | st.builds(lambda text: {"type": "thinking", "thinking": text, "signature": "EqQ"}, words)
    | st.builds(lambda text: {"type": "redacted_thinking", "data": sign(text)}, words)
    | st.builds(
        lambda call, name, said: {"type": "tool_use", "id": call, "name": name, "input": said},
        *(words, words, objects),
    )
)


def turn(role: str, blocks: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:
    content = st.lists(blocks, min_size=1, max_size=3)
    return st.builds(lambda said: {"role": role, "content": said}, content)


tools = st.builds(
    lambda name, description, strict, deferred: {
        "name": name,
        "description": description,
        "input_schema": {"type": "object", "$schema": "x"},
        "strict": strict,
        "defer_loading": deferred,
    },
    *(words, st.none() | words, st.booleans(), st.booleans()),
)
thinking = st.sampled_from(
    [
        None,
        {"type": "disabled"},
        {"type": "adaptive", "display": "omitted"},
        {"type": "between_tools"},
        {"type": "enabled", "budget_tokens": 3072},
    ]
)
bodies = st.fixed_dictionaries(
    {
        "model": words,
        "max_tokens": st.integers(1, 200_000),
        "messages": st.lists(
            turn("user", shown_blocks | results)
            | turn("assistant", said_blocks)
            | turn("system", text_blocks),
            max_size=6,
        ).map(
            lambda said: [{"role": "user", "content": "a"}, *said, {"role": "user", "content": "z"}]
        ),
        "tools": st.lists(tools, max_size=3),
        "thinking": thinking,
        "output_config": st.fixed_dictionaries(
            {},
            optional={
                "effort": st.sampled_from(["low", "medium", "high", "xhigh", "max"]),
                "format": st.just({"type": "json_schema", "schema": {"type": "object", "a": 1}}),
            },
        ),
    },
    optional={
        "system": words | st.lists(text_blocks, max_size=3),
        "stream": st.booleans(),
        "temperature": st.floats(0, 1),
        "top_p": st.floats(0.1, 1),
        "top_k": st.integers(0, 100),
        "stop_sequences": st.lists(words, max_size=3),
    },
)


@given(bodies, st.sampled_from([None, "auto", "any", "tool", "none"]), st.booleans())
def test_a_request_read_written_and_read_again_is_the_same(body, choice, is_parallel):
    shown = [tool for tool in body["tools"] if not tool["defer_loading"]]
    if choice is not None and shown:
        body["tool_choice"] = {"type": choice, "disable_parallel_tool_use": not is_parallel}
        if choice == "tool":
            body["tool_choice"]["name"] = shown[0]["name"]
    first = DIALECT.parse_request(json.dumps(body).encode(), "r1")
    again = DIALECT.parse_request(CLIENT.render_request(first), "r1")

    assert again == attrs.evolve(first, stream=True, private=False)


# Requests.


def test_a_request_is_always_for_a_stream():
    assert rendered() == {
        "model": "m",
        "max_tokens": 64,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "stream": True,
    }


def test_a_request_without_a_limit_gets_one():
    assert rendered(sampling=Sampling())["max_tokens"] == MAX_TOKENS == 32_000


def system(text: str) -> Message:
    return Message(role="system", parts=(Text(text),))


def test_instructions_at_the_head_are_the_system_and_later_ones_stay():
    asked = rendered(messages=(system("be"), system("brief"), HI, system("now"), HI))

    assert asked["system"] == "be\nbrief"
    assert [turn["role"] for turn in asked["messages"]] == ["user", "system", "user"]


def test_results_are_a_users_and_come_first():
    call = ToolCall(id="c1", name="f", arguments="")
    said = turns(
        HI,
        Message(role="assistant", parts=(Thinking("Hm"), Text("a"), Text("b"), call)),
        HI,
        Message(
            role="tool",
            parts=(ToolResult(call_id="c1"), ToolResult(call_id="c2", is_error=True)),
        ),
        Message(role="tool", parts=(ToolResult(call_id="c3", parts=(Text("1"), Text("2"))),)),
    )

    assert said[1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm", "signature": sign()},
                {"type": "text", "text": "ab"},
                {"type": "tool_use", "id": "c1", "name": "f", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1"},
                {"type": "tool_result", "tool_use_id": "c2", "is_error": True},
                {"type": "tool_result", "tool_use_id": "c3", "content": "12"},
                {"type": "text", "text": "hi"},
            ],
        },
    ]


def test_images_are_data_or_an_address():
    url = "https://a/b.png"
    images = Image(url="data:image/png;base64,iVBO", detail="low"), Image(url=url)
    result = ToolResult(call_id="c", parts=(Text("see"), images[0]))
    png = {"type": "base64", "media_type": "image/png", "data": "iVBO"}

    assert turns(Message(role="tool", parts=(result,)), Message(role="user", parts=images)) == [
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "c",
                    "content": [{"type": "text", "text": "see"}, {"type": "image", "source": png}],
                },
                {"type": "image", "source": png},
                {"type": "image", "source": {"type": "url", "url": url}},
            ],
        }
    ]


def test_a_turn_without_content_is_left_out():
    empty = Message(role="assistant"), Message(role="user", parts=(Text(""),))

    assert turns(HI, *empty, HI) == turns(HI) + turns(HI)


NOW = Tool(name="now", parameters={"type": "object", "$schema": "x"})
CUSTOM = Tool(name="patch", kind="custom", strict=True, description="d")


def test_tools_are_rendered():
    assert rendered(tools=(NOW, CUSTOM, Tool(name="bare")))["tools"] == [
        {"name": "now", "input_schema": {"type": "object", "$schema": "x"}},
        {
            "name": "patch",
            "input_schema": {
                "type": "object",
                "properties": {"input": {"type": "string"}},
                "required": ["input"],
            },
            "description": "d",
            "strict": True,
        },
        {"name": "bare", "input_schema": {"type": "object"}},
    ]


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (ToolChoice(), None),
        (ToolChoice(parallel=False), {"type": "auto", "disable_parallel_tool_use": True}),
        (ToolChoice(mode="none"), {"type": "none"}),
        (ToolChoice(mode="required"), {"type": "any"}),
        (
            ToolChoice(mode="required", name="now", parallel=False),
            {"type": "tool", "name": "now", "disable_parallel_tool_use": True},
        ),
    ],
)
def test_the_choice_is_rendered(choice, said):
    assert rendered(tools=(NOW,), tool_choice=choice).get("tool_choice") == said
    assert "tool_choice" not in rendered(tool_choice=choice)


@pytest.mark.parametrize(
    ("wanted", "thinking", "output"),
    [
        (Reasoning(), None, None),
        (Reasoning(enabled=True), {"type": "adaptive", "display": "summarized"}, None),
        (Reasoning(enabled=False), {"type": "disabled"}, None),
        (Reasoning(effort="none"), {"type": "disabled"}, None),
        (Reasoning(effort="minimal"), None, {"effort": "low"}),
        (
            Reasoning(enabled=True, effort="high", budget_tokens=9000),
            {"type": "enabled", "budget_tokens": 9000, "display": "summarized"},
            {"effort": "high"},
        ),
    ],
)
def test_how_much_to_think_is_rendered(wanted, thinking, output):
    asked = rendered(reasoning=wanted)

    assert (asked.get("thinking"), asked.get("output_config")) == (thinking, output)


@pytest.mark.parametrize("schema", [None, {"type": "object", "title": "x"}])
def test_the_form_of_the_answer_is_rendered(schema):
    asked = rendered(format=JsonFormat(schema=schema, name="n", description="d"))
    wanted = {"type": "json_schema", "schema": schema or {"type": "object"}}

    assert asked["output_config"] == {"format": wanted}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"prompts": ("x",), "messages": ()}, "prompt"),
        ({"n": 2}, "n"),
        ({"sampling": Sampling(seed=1)}, "seed"),
        ({"sampling": Sampling(min_p=0.1)}, "min_p"),
        ({"sampling": Sampling(repetition_penalty=1.1)}, "repetition_penalty"),
        ({"sampling": Sampling(frequency_penalty=1.0)}, "frequency_penalty"),
        ({"sampling": Sampling(presence_penalty=1.0)}, "presence_penalty"),
        ({"sampling": Sampling(logit_bias={1: 1.0})}, "logit_bias"),
        ({"sampling": Sampling(logprobs=0)}, "logprobs"),
        ({"sampling": Sampling(temperature=1.5)}, "temperature"),
        ({"template_args": {"x": 1}}, "chat_template_kwargs"),
        ({"messages": (Message(role="user", parts=(Image(url="data:x,y"),)),)}, "messages"),
        (
            {
                "messages": (
                    Message(role="assistant", parts=(ToolCall(id="c", name="f", arguments="["),)),
                )
            },
            "messages",
        ),
    ],
)
def test_what_a_message_cannot_say_is_refused(more, param):
    with pytest.raises(UnsupportedParameter) as caught:
        rendered(**more)

    assert caught.value.param == param


def test_a_switch_of_the_template_for_thinking_can_be_said():
    reasoning = Reasoning(enabled=False)
    asked = rendered(reasoning=reasoning, template_args={"enable_thinking": False})

    assert asked["thinking"] == {"type": "disabled"}


# Answers.


def stream(*events: dict) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event.get("type", "?").encode(), json.dumps(event).encode())
        for event in events
    )


def begin(**usage: object) -> dict:
    return {"type": "message_start", "message": {"usage": {"input_tokens": 3, **usage}}}


def block(kind: str, **more: object) -> dict:
    return {"type": "content_block_start", "index": 0, "content_block": {"type": kind, **more}}


def delta(kind: str, **more: object) -> dict:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": kind, **more}}


def end(reason: str = "end_turn", sequence: str | None = None, **usage: object) -> list[dict]:
    said = {"stop_reason": reason, "stop_sequence": sequence}
    last = {"type": "message_delta", "delta": said, "usage": {"output_tokens": 2, **usage}}
    return [{"type": "content_block_stop", "index": 0}, last, {"type": "message_stop"}]


USAGE = Usage(prompt_tokens=3, completion_tokens=2)


def stop(**more: object) -> Finished:
    return Finished(**{"reason": "stop", "usage": USAGE, **more})


def call(index: int, call_id: str) -> ToolCallStarted:
    return ToolCallStarted(index=index, id=call_id, name="f")


USE = block("tool_use", id="a", name="f", input={})


@pytest.mark.parametrize(
    ("said", "events"),
    [
        ([block("text", text=""), delta("text_delta", text="x"), *end()], [TextDelta("x"), stop()]),
        ([block("text", text="all"), *end()], [TextDelta("all"), stop()]),
        (
            [block("thinking", thinking="t"), delta("thinking_delta", thinking="u"), *end()],
            [ThinkingDelta("t"), ThinkingDelta("u"), stop()],
        ),
        ([block("thinking"), delta("signature_delta", signature="EqQB"), *end()], [stop()]),
        ([block("redacted_thinking", data="x"), *end()], [stop()]),
        (
            [USE, delta("input_json_delta", partial_json="{}"), *end("tool_use")],
            [call(0, "a"), ToolCallDelta(index=0, arguments="{}"), stop(reason="tool_calls")],
        ),
        ([USE, *end()], [call(0, "a"), stop(reason="tool_calls")]),
        ([USE, *end("max_tokens")], [call(0, "a"), stop(reason="length")]),
        (
            [block("tool_use", id="a", name="f", input={"x": 1}), *end("tool_use")],
            [call(0, "a"), ToolCallDelta(index=0, arguments='{"x":1}'), stop(reason="tool_calls")],
        ),
        ([block("tool_use", name="f"), *end()], [call(0, "toolu_r1_0"), stop(reason="tool_calls")]),
        (
            [
                block("server_tool_use", id="s", name="web_search", input={}),
                *(delta("input_json_delta", partial_json="{}"), {"type": "news", "delta": None}),
                *(block("web_search_tool_result", content=[]), {"type": "ping"}, *end()),
            ],
            [stop()],
        ),
        ([*end("stop_sequence", "END")], [stop(stop_string="END")]),
        ([*end("refusal")], [stop(reason="content_filter")]),
        ([*end("model_context_window_exceeded")], [stop(reason="length")]),
        ([*end("pause_turn")], [stop()]),
        ([*end()[:2]], [stop()]),
        ([*end(), *end()], [stop()]),
    ],
)
def test_what_servers_stream_is_read(said, events):
    assert decoded(stream(begin(), *said)) == [Started(prompt_tokens=3), *events]


@pytest.mark.parametrize(
    ("first", "last", "usage"),
    [
        ({"cache_read_input_tokens": 5}, {}, Usage(prompt_tokens=8, cached_tokens=5)),
        ({"cache_creation_input_tokens": 5}, {}, Usage(prompt_tokens=8)),
        (
            {},
            {"input_tokens": 1, "cache_read_input_tokens": 2},
            Usage(prompt_tokens=3, cached_tokens=2),
        ),
        ({}, {"input_tokens": None, "cache_read_input_tokens": None}, Usage(prompt_tokens=3)),
        (
            {"output_tokens": 1},
            {"output_tokens_details": {"thinking_tokens": 1}},
            Usage(prompt_tokens=3, reasoning_tokens=1),
        ),
        ({}, {"output_tokens_details": None}, Usage(prompt_tokens=3)),
    ],
)
def test_usage_is_put_together(first, last, usage):
    events = decoded(stream(begin(**first), *end(**last)))

    assert events[-1].usage == attrs.evolve(usage, completion_tokens=2)


def test_of_one_call_at_a_time_the_first_is_read():
    arguments = delta("input_json_delta", partial_json="{}")
    other = block("tool_use", id="b", name="g")
    events = decoded(
        stream(begin(), USE, arguments, other, arguments, *end("tool_use")),
        tool_choice=ToolChoice(parallel=False),
    )

    assert events[1:] == [
        *(call(0, "a"), ToolCallDelta(index=0, arguments="{}"), stop(reason="tool_calls"))
    ]


def test_a_server_that_does_not_begin_is_taken_at_its_word():
    assert decoded(stream(block("text", text="x"), *end(input_tokens=3))) == [
        *(Started(prompt_tokens=0), TextDelta("x"), stop())
    ]


def test_events_that_are_not_read_may_look_like_anything():
    strange = {"type": "note", "delta": "x", "content_block": [], "usage": "none"}
    assert decoded(stream(strange, begin(), strange, block("text", text="x"), *end())) == (
        decoded(stream(begin(), block("text", text="x"), *end()))
    )


def error(kind: str, message: str = "x") -> dict:
    return {"type": "error", "error": {"type": kind, "message": message}}


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        ([], UpstreamDied, "the server's answer broke off"),
        ([{"type": "message_stop"}], UpstreamDied, "the server's answer broke off"),
        ([error("overloaded_error")], NoNodeAvailable, "x"),
        ([error("api_error")], UpstreamFailed, "x"),
        ([error("rate_limit_error")], RateLimited, "x"),
        ([error("invalid_request_error")], InvalidRequest, "x"),
        (
            [error("invalid_request_error", "prompt is too long: 9 tokens > 8 maximum")],
            *(ContextLengthExceeded, "prompt is too long: 9 tokens > 8 maximum"),
        ),
        ([error("api_error"), *end()], UpstreamFailed, "x"),
    ],
)
def test_a_stream_that_breaks_fails(said, kind, message):
    *_, failed = decoded(stream(begin(), *said))

    assert isinstance(failed, Failed)
    assert (type(failed.error), failed.error.message) == (kind, message)


@pytest.mark.parametrize("junk", [b"{", b"[]", b"\xff", b'{"type": 1}', b"[" * 100_000])
def test_an_event_that_is_none_fails(junk):
    [failed] = decoded(b"data: " + junk + b"\n\n" + stream(begin()))

    assert isinstance(failed.error, UpstreamFailed)


@pytest.mark.parametrize(
    ("status", "kind", "read"),
    [
        (400, "invalid_request_error", InvalidRequest),
        (401, "authentication_error", NotAuthenticated),
        (403, "permission_error", PermissionDenied),
        (413, "request_too_large", RequestTooLarge),
        (429, "rate_limit_error", RateLimited),
        (500, "api_error", UpstreamFailed),
        (529, "overloaded_error", NoNodeAvailable),
    ],
)
def test_an_error_answer_is_read(status, kind, read):
    assert type(CLIENT.read_error(status, json.dumps(error(kind)).encode())) is read


@pytest.mark.parametrize(
    "problem",
    [
        ModelNotFound("no model is called 'x'"),
        NoNodeAvailable("none"),
        InvalidRequest("messages[0].content: no"),
        NotAuthenticated("no"),
        RequestTooLarge("no"),
    ],
)
def test_an_error_of_ours_is_read_as_it_was(problem):
    read = CLIENT.read_error(*DIALECT.render_error(problem, "r1"))

    assert (type(read), read.message) == (type(problem), problem.message)


def test_the_figures_of_an_overflow_travel():
    figures: dict[str, object] = {"prompt_tokens": 9001, "context_tokens": 8192}
    problem: CortexError = ContextLengthExceeded("too long", details=figures)
    read = CLIENT.read_error(*DIALECT.render_error(problem))

    assert type(read) is ContextLengthExceeded
    assert read.details == figures


@given(texts)
def test_a_failure_of_ours_is_read_with_its_words(words):
    [_, failed] = decoded(encoded(SHOWN, [Started(prompt_tokens=1), Failed(UpstreamDied(words))]))

    assert failed.error.message == words
