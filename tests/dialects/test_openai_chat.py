"""OpenAI Chat Completions: what is read, what is refused, and every byte that is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.chat.events import Failed, Finished, Started, TextDelta, Usage
from cortex.chat.request import ChatRequest, Message, Sampling, Text
from cortex.dialects.openai_chat import OpenAIChat
from cortex.errors import InvalidRequest, ModelLoading, UpstreamDied
from cortex.fleet.model import ModelCard
from cortex.testing import dialect_contract

DIALECT = OpenAIChat()
HI = [{"role": "user", "content": "hi"}]


def body(**more: object) -> bytes:
    return json.dumps({"model": "m", "messages": HI, **more}).encode()


def parse(**more: object) -> ChatRequest:
    return DIALECT.parse_request(body(**more), "r1")


def test_it_keeps_the_contract():
    dialect_contract(OpenAIChat(), body(), body(stream=True))


def test_a_minimal_request():
    message = Message(role="user", parts=(Text("hi"),))

    assert parse() == ChatRequest(id="r1", model="m", messages=(message,))


@pytest.mark.parametrize(
    ("message", "role", "text"),
    [
        ({"role": "user", "content": "a b"}, "user", "a b"),
        ({"role": "user", "content": [{"type": "text", "text": "a b"}]}, "user", "a b"),
        (
            {"role": "user", "content": [{"type": "text", "text": t} for t in ("a", " ", "b")]},
            *("user", "a b"),
        ),
        ({"role": "system", "content": "be"}, "system", "be"),
        ({"role": "developer", "content": "be"}, "system", "be"),
        ({"role": "assistant", "content": None}, "assistant", ""),
        ({"role": "assistant"}, "assistant", ""),
        ({"role": "assistant", "content": ""}, "assistant", ""),
        ({"role": "assistant", "content": [], "refusal": None}, "assistant", ""),
        ({"role": "assistant", "content": "x", "tool_calls": []}, "assistant", "x"),
        ({"role": "user", "content": "x", "name": "zed", "more": 1}, "user", "x"),
        ({"role": "user", "content": "\u20ac \U0001f600 \x00"}, "user", "\u20ac \U0001f600 \x00"),
    ],
)
def test_a_message_is_read(message, role, text):
    [read] = parse(messages=[message]).messages

    assert (read.role, read.text) == (role, text)


@pytest.mark.parametrize(
    ("asked", "sampling"),
    [
        ({}, {}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 2, "top_p": 1}, {"temperature": 2.0, "top_p": 1.0}),
        ({"top_k": 40}, {"top_k": 40}),
        ({"top_k": 0}, {"top_k": 0}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"min_p": 0}, {"min_p": 0.0}),
        ({"min_p": 0.05}, {"min_p": 0.05}),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"repeat_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"repeat_penalty": 1.1, "repetition_penalty": 1}, {"repetition_penalty": 1.0}),
        ({"seed": -5}, {"seed": -5}),
        ({"ignore_eos": True}, {"ignore_eos": True}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 6}, {"max_tokens": 6}),
        ({"max_tokens": 5, "max_completion_tokens": 6}, {"max_tokens": 6}),
        ({"max_tokens": 7, "max_completion_tokens": None}, {"max_tokens": 7}),
        ({"stop": "x"}, {"stop": ("x",)}),
        ({"stop": ["x", "y"]}, {"stop": ("x", "y")}),
        ({"stop": None}, {}),
        ({"stop": ""}, {}),
        ({"stop": [""]}, {}),
        ({"stop": []}, {}),
    ],
)
def test_sampling_is_read(asked, sampling):
    assert parse(**asked).sampling == Sampling(**sampling)


@pytest.mark.parametrize(
    ("asked", "stream", "include_usage"),
    [
        ({}, False, False),
        ({"stream": None}, False, False),
        ({"stream": True}, True, False),
        ({"stream": True, "stream_options": None}, True, False),
        ({"stream": True, "stream_options": {}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, True, True),
        ({"stream": True, "stream_options": {"include_usage": False, "x": 1}}, True, False),
    ],
)
def test_streaming_is_read(asked, stream, include_usage):
    read = parse(**asked)

    assert (read.stream, read.include_usage) == (stream, include_usage)


@pytest.mark.parametrize(
    "ignored",
    [
        {"n": 1},
        {"tools": []},
        {"tools": None},
        {"response_format": {"type": "text"}},
        {"logprobs": False, "top_logprobs": 0},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}},
        {"user": "zed", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {"something": {"new": [1, 2, {"x": None}]}},
        {"modalities": ["text"], "verbosity": "low", "prediction": {"type": "content"}},
        {"functions": [], "function_call": "none", "response_format": None, "logprobs": None},
        {"continue_final_message": False, "add_generation_prompt": True},
        {"tool_choice": "auto", "parallel_tool_calls": True, "reasoning_effort": None},
        {"chat_template_kwargs": {}, "web_search_options": {}, "min_tokens": 2},
    ],
)
def test_what_says_nothing_or_is_unknown_is_accepted(ignored):
    assert parse(**ignored) == parse()


@pytest.mark.parametrize(
    ("asked", "param", "message"),
    [
        ({"functions": [{"name": "f"}]}, "functions", "functions is not supported"),
        (
            {"continue_final_message": True},
            "continue_final_message",
            "continue_final_message is not supported",
        ),
        (
            {"add_generation_prompt": False},
            "add_generation_prompt",
            "add_generation_prompt is not supported",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a"}], "add_generation_prompt": True},
            *("add_generation_prompt", "add_generation_prompt is not supported"),
        ),
        ({"function_call": {"name": "f"}}, "function_call", "function_call is not supported"),
        ({"audio": {"voice": "x"}}, "audio", "audio is not supported"),
        ({"modalities": ["text", "audio"]}, "modalities", "modalities is not supported"),
        (
            {"messages": [{"role": "assistant", "function_call": {"name": "f"}}]},
            *("messages[0].function_call", "messages[0].function_call is not supported"),
        ),
        (
            {"messages": [{"role": "assistant", "audio": {"id": "a"}}]},
            *("messages[0].audio", "messages[0].audio is not supported"),
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages[0].content[0]",
            "messages[0].content[0]: content of type 'input_audio' is not supported",
        ),
        (
            {"tools": [{"type": "web_search"}]},
            *("tools[0].type", "tools[0]: tools of type 'web_search' are not supported"),
        ),
        (
            {"tool_choice": {"type": "allowed_tools"}},
            *("tool_choice.type", "tool_choice of type 'allowed_tools' is not supported"),
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "type": "custom"}]}]},
            "messages[0].tool_calls[0].type",
            "messages[0].tool_calls[0]: calls of type 'custom' are not supported",
        ),
        (
            {"response_format": {"type": "grammar"}},
            *("response_format.type", "response_format of type 'grammar' is not supported"),
        ),
    ],
)
def test_what_we_know_and_cannot_honour_is_refused_by_name(asked, param, message):
    with pytest.raises(InvalidRequest) as caught:
        parse(**asked)

    error = caught.value
    assert (error.code, error.status) == ("unsupported_parameter", 400)
    assert (error.param, error.message) == (param, message)


def one(**message: object) -> dict[str, object]:
    return {"messages": [*HI, *HI, {"role": "user", "content": "x", **message}]}


@pytest.mark.parametrize(
    ("asked", "code", "param", "message"),
    [
        (
            {"messages": None},
            *("invalid_value", "messages", "messages: expected array, got null"),
        ),
        (
            {"messages": []},
            *("invalid_value", "messages", "messages: expected array of length >= 1"),
        ),
        ({"model": ""}, "invalid_value", "model", "model: expected str of length >= 1"),
        (
            one(content=5),
            "invalid_value",
            "messages[2].content",
            "messages[2].content: expected str | array | null, got int",
        ),
        (
            one(role="root"),
            *("invalid_value", "messages[2].role", "messages[2].role: invalid enum value 'root'"),
        ),
        (
            one(role="x - at `$.model`"),
            "invalid_value",
            "messages[2].role",
            "messages[2].role: invalid enum value 'x - at $.model'",
        ),
        (
            one(content=[{"text": "x"}]),
            "missing_required_parameter",
            "messages[2].content[0].type",
            "messages[2].content[0].type is required",
        ),
        (
            one(content=[{"type": "text"}]),
            "missing_required_parameter",
            "messages[2].content[0].text",
            "messages[2].content[0].text is required",
        ),
        (
            one(content=["x"]),
            "invalid_value",
            "messages[2].content[0]",
            "messages[2].content[0]: expected object, got str",
        ),
        (
            {"messages": [{"content": "x"}]},
            "missing_required_parameter",
            "messages[0].role",
            "messages[0].role is required",
        ),
        (
            {"messages": "hi"},
            *("invalid_value", "messages", "messages: expected array, got str"),
        ),
        (
            {"temperature": "hot"},
            *("invalid_value", "temperature", "temperature: expected float | null, got str"),
        ),
        (
            {"temperature": 2.1},
            "invalid_value",
            "temperature",
            "temperature: expected float <= 2.0",
        ),
        ({"temperature": -1}, "invalid_value", "temperature", "temperature: expected float >= 0.0"),
        ({"min_p": 1.5}, "invalid_value", "min_p", "min_p: expected float <= 1.0"),
        (
            {"repetition_penalty": 0},
            *("invalid_value", "repetition_penalty", "repetition_penalty: expected float > 0.0"),
        ),
        ({"top_p": 0}, "invalid_value", "top_p", "top_p: expected float > 0.0"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens", "max_tokens: expected int >= 1"),
        (
            {"max_tokens": 1.5},
            *("invalid_value", "max_tokens", "max_tokens: expected int | null, got float"),
        ),
        ({"n": 0}, "invalid_value", "n", "n: expected int >= 1"),
        ({"n": 129}, "invalid_value", "n", "n: expected int <= 128"),
        (
            {"logprobs": True, "top_logprobs": 21},
            *("invalid_value", "top_logprobs", "top_logprobs: expected int <= 20"),
        ),
        (
            {"top_logprobs": 2},
            *("invalid_value", "top_logprobs", "top_logprobs wants logprobs"),
        ),
        (
            {"tool_choice": "any"},
            *("invalid_value", "tool_choice", "tool_choice: invalid enum value 'any'"),
        ),
        (
            {"tool_choice": "required"},
            *("invalid_value", "tools", "tool_choice is required, and tools is empty"),
        ),
        (
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
            "invalid_value",
            "tool_choice.function.name",
            "tool_choice.function.name: no tool is called 'f'",
        ),
        (
            {"tool_choice": {"type": "function"}},
            "missing_required_parameter",
            "tool_choice.function",
            "tool_choice.function is required",
        ),
        (
            {"tools": [{"type": "function"}]},
            *("missing_required_parameter", "tools[0].function", "tools[0].function is required"),
        ),
        (
            {"tools": [{"type": "function", "function": {"name": ""}}]},
            "invalid_value",
            "tools[0].function.name",
            "tools[0].function.name: expected str of length >= 1",
        ),
        (
            {"response_format": {"type": "json_schema"}},
            "missing_required_parameter",
            "response_format.json_schema",
            "response_format.json_schema is required",
        ),
        (
            {"reasoning_effort": "huge"},
            "invalid_value",
            "reasoning_effort",
            "reasoning_effort: invalid enum value 'huge'",
        ),
        (
            {"messages": [{"role": "tool", "content": "1"}]},
            "missing_required_parameter",
            "messages[0].tool_call_id",
            "messages[0].tool_call_id is required",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]},
            "missing_required_parameter",
            "messages[0].tool_calls[0].function",
            "messages[0].tool_calls[0].function is required",
        ),
        (
            one(content=[{"type": "image_url"}]),
            "missing_required_parameter",
            "messages[2].content[0].image_url",
            "messages[2].content[0].image_url is required",
        ),
        (
            one(content=[{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]),
            "invalid_value",
            "messages[2].content[0].image_url.url",
            "messages[2].content[0].image_url.url: expected http(s):// or a data: URI with base64",
        ),
        ({"stop": 5}, "invalid_value", "stop", "stop: expected str | array | null, got int"),
        ({"stop": [1]}, "invalid_value", "stop[0]", "stop[0]: expected str, got int"),
        ({"stop": ["x"] * 257}, "invalid_value", "stop", "stop: expected array of length <= 256"),
        (
            {"stream_options": {"include_usage": "yes"}},
            "invalid_value",
            "stream_options.include_usage",
            "stream_options.include_usage: expected bool, got str",
        ),
        (
            {"logit_bias": {"5": "x"}},
            *("invalid_value", "logit_bias[...]", "logit_bias[...]: expected float, got str"),
        ),
        (
            {"logit_bias": {"5": 101}},
            *("invalid_value", "logit_bias[...]", "logit_bias[...]: expected float <= 100.0"),
        ),
        (
            {"presence_penalty": 2.5},
            *("invalid_value", "presence_penalty", "presence_penalty: expected float <= 2.0"),
        ),
    ],
)
def test_a_wrong_type_is_refused_with_its_path(asked, code, param, message):
    with pytest.raises(InvalidRequest) as caught:
        parse(**asked)

    error = caught.value
    assert (error.code, error.status) == (code, 400)
    assert (error.param, error.message) == (param, message)


@pytest.mark.parametrize(
    ("raw", "code", "message"),
    [
        (b"", "invalid_json", "the body is not valid JSON: Input data was truncated"),
        (b"{", "invalid_json", "the body is not valid JSON: Input data was truncated"),
        (b"[]", "invalid_value", "the body: expected object, got array"),
        (b"null", "invalid_value", "the body: expected object, got null"),
        (b"{} x", "missing_required_parameter", "model is required"),
        (b'{"model": "m"}', "missing_required_parameter", "messages is required"),
        (b'{"x": ' + b"[" * 100_000, "invalid_json", "the body is nested too deeply"),
        (b'{"x": ' + b'{"a":' * 100_000, "invalid_json", "the body is nested too deeply"),
        (body()[:-1] + b',"audio":' + b"[" * 100_000, "invalid_json", "the body is"),
        (b'{"model": "\xff\xfe"}', "invalid_json", "the body is not valid JSON: "),
        (b'{"model": "\\ud800"}', "invalid_json", "the body is not valid JSON: "),
        (b'{"model": NaN}', "invalid_json", "the body is not valid JSON: "),
        (b"\xef\xbb\xbf{}", "invalid_json", "the body is not valid JSON: "),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_json_object_is_refused(raw, code, message):
    with pytest.raises(InvalidRequest) as caught:
        DIALECT.parse_request(raw, "r1")

    assert caught.value.code == code
    assert caught.value.message.startswith(message)


NAMES = "model messages role content type text stop stream n seed tools function name parameters"
NAMES += " tool_calls id arguments tool_choice response_format json_schema schema image_url url"


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(NAMES.split()), inner, max_size=9)
        ),
    ).map(lambda value: json.dumps(value).encode("utf-8", "replace"))
)
def test_no_bytes_ever_raise_anything_but_an_invalid_request(raw):
    try:
        DIALECT.parse_request(raw, "r1")
    except InvalidRequest:
        return


USAGE = Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=3, queue_ms=1.26)
EVENTS = (
    Started(prompt_tokens=7),
    TextDelta("Hé"),
    TextDelta(' "you"\n'),
    Finished(reason="stop", usage=USAGE),
)
HEAD = b'data: {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":99,"model":"m"'
SAID_USAGE = (
    b'{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9,'
    b'"prompt_tokens_details":{"cached_tokens":3},'
    b'"completion_tokens_details":{"reasoning_tokens":0},'
    b'"cortex":{"queue_ms":1.3,"prefill_ms":0.0,"decode_ms":0.0}}'
)


def chunk(delta: bytes, reason: bytes = b"null", tail: bytes = b"") -> bytes:
    choice = b',"choices":[{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}]%b}\n\n'
    return HEAD + choice % (delta, reason, tail)


def stream(**more: object) -> list[bytes]:
    encoder = DIALECT.encoder(parse(stream=True, **more), 99)
    return [encoder.feed(event) for event in EVENTS]


def test_a_stream_is_these_bytes():
    assert stream() == [
        chunk(b'{"role":"assistant","content":""}'),
        chunk('{"content":"Hé"}'.encode()),
        chunk(b'{"content":" \\"you\\"\\n"}'),
        chunk(b"{}", b'"stop"') + b"data: [DONE]\n\n",
    ]


def test_a_stream_with_usage_is_these_bytes():
    null = b',"usage":null'
    assert stream(stream_options={"include_usage": True}) == [
        chunk(b'{"role":"assistant","content":""}', tail=null),
        chunk('{"content":"Hé"}'.encode(), tail=null),
        chunk(b'{"content":" \\"you\\"\\n"}', tail=null),
        chunk(b"{}", b'"stop"', null)
        + HEAD
        + b',"choices":[],"usage":'
        + SAID_USAGE
        + b"}\n\n"
        + b"data: [DONE]\n\n",
    ]


def test_a_body_is_this_json():
    encoder = DIALECT.encoder(parse(), 99)
    pieces = [encoder.feed(event) for event in EVENTS]

    assert pieces[:-1] == [b""] * 3
    assert encoder.content_type == "application/json"
    assert json.loads(pieces[-1]) == {
        "id": "chatcmpl-r1",
        "object": "chat.completion",
        "created": 99,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": 'Hé "you"\n', "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": json.loads(SAID_USAGE),
    }


def test_a_keep_alive_is_an_empty_delta_that_sdks_count():
    encoder = DIALECT.encoder(parse(stream=True), 99)
    assert encoder.keep_alive() == b": keep-alive\n\n"  # the first delta has to have the role
    encoder.feed(Started(prompt_tokens=7))

    assert encoder.keep_alive() == chunk(b"{}")
    assert DIALECT.encoder(parse(), 99).keep_alive() == b""


def test_a_keep_alive_is_of_a_choice_that_goes_on():
    encoder = DIALECT.encoder(parse(stream=True, n=2), 99)
    for choice in (0, 1):
        encoder.feed(Started(prompt_tokens=7), choice)
    encoder.feed(Finished(reason="stop", usage=USAGE), 0)

    assert encoder.keep_alive() == chunk(b"{}").replace(b'"index":0', b'"index":1')


@pytest.mark.parametrize("streaming", [True, False])
def test_a_failure_ends_without_done(streaming):
    encoder = DIALECT.encoder(parse(stream=streaming), 99)
    said = encoder.feed(Failed(UpstreamDied("the worker died")))

    error = json.loads(said.removeprefix(b"data: "))["error"]
    assert (error["message"], error["code"]) == ("the worker died", "upstream_died")
    assert b"[DONE]" not in said


def test_an_error_is_rendered_with_its_hint_and_figures():
    error = ModelLoading("m is loading", hint="ask again", details={"progress": 0.5})

    status, said = DIALECT.render_error(error)

    assert status == 503
    assert json.loads(said) == {
        "error": {
            "message": "m is loading (ask again)",
            "type": "overloaded_error",
            "code": "model_loading",
            "param": None,
            "progress": 0.5,
        }
    }


def test_figures_never_replace_what_an_error_says():
    error = ModelLoading("m is loading", details={"message": "other", "code": "other"})

    said = json.loads(DIALECT.render_error(error)[1])["error"]

    assert (said["message"], said["code"]) == ("m is loading", "model_loading")


def test_models_are_rendered():
    card = ModelCard(id="org/m", context=512, extra={"loaded": True})
    row = {
        "id": "org/m",
        "object": "model",
        "created": 5,
        "owned_by": "cortex",
        "max_model_len": 512,
        "context_length": 512,
        "loaded": True,
    }

    assert json.loads(DIALECT.render_model(card, 5)) == row
    assert json.loads(DIALECT.render_models([card], 5, {})) == {"object": "list", "data": [row]}
    assert "max_model_len" not in json.loads(DIALECT.render_model(ModelCard(id="x"), 5))


def read_sse(data: bytes, cuts: list[int]) -> Iterator[str]:
    """Read events as a client does, from pieces cut anywhere."""
    bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    buffer = b""
    for start, end in pairwise(bounds):
        buffer += data[start:end]
        while b"\n\n" in buffer:
            event, _, buffer = buffer.partition(b"\n\n")
            lines = event.decode().split("\n")
            yield "\n".join(line.removeprefix("data: ") for line in lines if line[:5] == "data:")
    assert buffer == b""


texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=20)


@given(texts, st.lists(st.integers(0), max_size=5))
def test_any_text_arrives_whole_through_a_stream_cut_anywhere(deltas, cuts):
    encoder = DIALECT.encoder(parse(stream=True), 99)
    events = [Started(prompt_tokens=1), *map(TextDelta, deltas)]
    events.append(Finished(reason="length", usage=attrs.evolve(USAGE)))
    data = b"".join(map(encoder.feed, events))

    *chunks, done = read_sse(data, cuts)

    choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "".join(deltas)
    assert [choice["finish_reason"] for choice in choices][-1] == "length"
    assert done == "[DONE]"


@given(texts)
def test_any_text_arrives_whole_in_a_body(deltas):
    encoder = DIALECT.encoder(parse(), 99)
    for text in deltas:
        encoder.feed(TextDelta(text))
    said = json.loads(encoder.feed(Finished(reason="stop", usage=USAGE)))

    assert said["choices"][0]["message"]["content"] == "".join(deltas)


def test_penalties_and_biases_reach_the_sampler():
    asked = {"frequency_penalty": 0.5, "presence_penalty": -1, "logit_bias": {"7": -100, "9": 3}}
    sampling = parse(**asked).sampling
    assert sampling.frequency_penalty == 0.5
    assert sampling.presence_penalty == -1
    assert sampling.logit_bias == {7: -100, 9: 3}
