"""OpenAI Chat Completions, the client half: what servers say, and round trips with our own."""

from __future__ import annotations

import json
from itertools import pairwise

import attrs
import pytest
from hypothesis import given, settings
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
from cortex.chat.request import (
    ChatRequest,
    Message,
    Reasoning,
    Sampling,
    Text,
    Tool,
    ToolChoice,
    ToolResult,
)
from cortex.dialects.openai_chat import OpenAIChat
from cortex.errors import UnsupportedParameter

DIALECT = OpenAIChat()
HI = Message(role="user", parts=(Text("hi"),))
CLIENT = DIALECT.client
ASK = ChatRequest(id="r1", model="m", messages=(HI,), sampling=Sampling(stop=("END",)), stream=True)
NOTHING = Usage()


def said(*chunks: object, ask: ChatRequest = ASK, done: bool = True) -> list[object]:
    """Return the events of a stream of these chunks; those of choice 0 without their choice."""
    decoder = CLIENT.decoder(ask)
    stream = b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks)
    pairs = [*decoder.feed(stream + (b"data: [DONE]\n\n" if done else b"")), *decoder.end()]
    return [event if choice == 0 else (choice, event) for choice, event in pairs]


def chunk(reason: str | None = None, **delta: object) -> dict[str, object]:
    return {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def tool(index: int | None, **function: object) -> dict[str, object]:
    given = {"id": function.pop("id")} if "id" in function else {}
    return chunk(tool_calls=[{"index": index, "type": "function", **given, "function": function}])


def stop(reason: str = "stop", usage: Usage = NOTHING, **more: object) -> Finished:
    return Finished(reason=reason, usage=usage, **more)


BEGAN = Started(prompt_tokens=0)


@pytest.mark.parametrize(
    ("chunks", "events"),
    [
        ([chunk(role="assistant", content=""), chunk("stop")], [stop()]),
        (
            [chunk(content="a"), chunk("length", content="b")],
            [*map(TextDelta, "ab"), stop("length")],
        ),
        ([chunk(content=None), chunk("length")], [stop("length")]),
        ([chunk(reasoning_content="t"), chunk("stop")], [ThinkingDelta("t"), stop()]),
        ([chunk(reasoning="t"), chunk("stop")], [ThinkingDelta("t"), stop()]),
        ([chunk("stop", reasoning="t", reasoning_content="t")], [ThinkingDelta("t"), stop()]),
        ([chunk("stop", content="a", reasoning="t")], [ThinkingDelta("t"), TextDelta("a"), stop()]),
        ([chunk(refusal="no"), chunk("content_filter")], [TextDelta("no"), stop("content_filter")]),
        ([chunk("eos")], [stop()]),
        ([chunk("stop"), chunk("stop")], [stop()]),
        ([{"choices": [{"index": 7, "delta": {"content": "?"}}]}, chunk("stop")], [stop()]),
        ([{"ping": 1}, chunk("stop")], [stop()]),
    ],
)
def test_what_servers_stream_is_read(chunks, events):
    assert said(*chunks) == [BEGAN, *events]
    assert said(*chunks, done=False) == [BEGAN, *events]


USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
DETAILS = {
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
FIVE = Usage(prompt_tokens=7, completion_tokens=5)


@pytest.mark.parametrize(
    ("chunks", "usage"),
    [
        ([chunk("stop"), {"choices": [], "usage": USAGE}], FIVE),
        ([{**chunk("stop"), "usage": USAGE}], FIVE),
        ([{**chunk(), "usage": {"prompt_tokens": 7}}, {**chunk("stop"), "usage": USAGE}], FIVE),
        ([{**chunk("stop"), "usage": None}, {"choices": [], "usage": USAGE}], FIVE),
        ([chunk("stop"), {"usage": USAGE}], FIVE),
        (
            [chunk("stop"), {"choices": [], "usage": {**USAGE, **DETAILS}}],
            attrs.evolve(FIVE, cached_tokens=3, reasoning_tokens=2),
        ),
        ([chunk("stop"), {"choices": [], "usage": {**USAGE, "prompt_tokens_details": None}}], FIVE),
        ([chunk("stop")], NOTHING),
    ],
)
def test_usage_is_found_in_any_chunk(chunks, usage):
    assert said(*chunks)[-1] == stop(usage=usage)
    assert said(*chunks, done=False)[-1] == stop(usage=usage)


def test_a_server_that_counts_as_it_goes_says_the_prompt_at_once():
    assert said({**chunk(role="assistant"), "usage": USAGE})[0] == Started(prompt_tokens=7)


def begun(index: int, call: str, name: str = "f") -> ToolCallStarted:
    return ToolCallStarted(index=index, id=call, name=name)


def more(index: int, arguments: str) -> ToolCallDelta:
    return ToolCallDelta(index=index, arguments=arguments)


EMPTY = more(0, "{}")
WHOLE = {"name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("deltas", "events"),
    [
        (
            [
                tool(0, id="a", name="f", arguments=""),
                tool(0, arguments="{"),
                tool(0, arguments="}"),
            ],
            [begun(0, "a"), more(0, "{"), more(0, "}")],
        ),
        ([tool(0, id="a", **WHOLE)], [begun(0, "a"), EMPTY]),
        ([tool(0, id="a", name="f", arguments={"x": 1})], [begun(0, "a"), more(0, '{"x":1}')]),
        # the id, or all there is, in every delta
        ([tool(0, id="a", name="f"), tool(0, id="a", **WHOLE)], [begun(0, "a"), EMPTY]),
        ([tool(0, id="a", name="f"), tool(0, id="b", arguments="{}")], [begun(0, "a"), EMPTY]),
        # an id first, the name later
        (
            [tool(0, id="a"), tool(0, arguments="{"), tool(0, name="f", arguments="}")],
            [begun(0, "a"), EMPTY],
        ),
        # one index for all calls, or none
        (
            [tool(0, id="a", **WHOLE), tool(0, id="b", name="g", arguments="{}")],
            [begun(0, "a"), EMPTY, begun(1, "b", "g"), more(1, "{}")],
        ),
        (
            [tool(None, id="a", **WHOLE), tool(None, id="b", name="g"), tool(None, arguments="1")],
            [begun(0, "a"), EMPTY, begun(1, "b", "g"), more(1, "1")],
        ),
        (
            [tool(None, **WHOLE), tool(None, name="g", arguments="1")],
            [begun(0, "call_r1_0"), EMPTY, begun(1, "call_r1_1", "g"), more(1, "1")],
        ),
        # indices that begin at one
        ([tool(1, id="a", name="f"), tool(2, id="b", name="f")], [begun(0, "a"), begun(1, "b")]),
        # no id
        ([tool(0, **WHOLE)], [begun(0, "call_r1_0"), EMPTY]),
        # never a name
        ([tool(0, id="a", arguments="{}"), tool(1, id="b", name="f")], [begun(0, "b")]),
    ],
)
def test_calls_are_normalised(deltas, events):
    assert said(*deltas, chunk("stop")) == [BEGAN, *events, stop("tool_calls")]


@pytest.mark.parametrize(
    "between", [chunk(content="a"), chunk(reasoning="t"), tool(1, id="b", name="g")]
)
def test_arguments_that_come_late_are_not_anothers(between):
    *_, failed = said(tool(0, id="a", name="f"), between, tool(0, arguments='{"x":'), chunk("stop"))
    *_, empty, end = said(tool(0, id="a", name="f"), between, tool(0, **WHOLE), chunk("stop"))

    assert failed.error.message == "the server mixes up what its calls say"
    assert not isinstance(empty, ToolCallDelta)
    assert end == stop("tool_calls")


def test_a_call_that_was_cut_off_is_no_call():
    cut = said(tool(0, id="a", name="f", arguments="{"), chunk("length"))
    assert cut == [BEGAN, begun(0, "a"), more(0, "{"), stop("length")]


def test_of_one_call_at_a_time_the_first_is_read():
    ask = attrs.evolve(ASK, tool_choice=ToolChoice(parallel=False))
    first, second = tool(0, id="a", name="f", arguments="{}"), tool(1, id="b", name="g")

    assert said(first, second, tool(1, arguments="{}"), chunk("tool_calls"), ask=ask) == [
        *(BEGAN, begun(0, "a"), more(0, "{}"), stop("tool_calls")),
    ]


@pytest.mark.parametrize(
    ("more", "matched"),
    [
        ({"stop_reason": "END"}, "END"),
        ({"matched_stop": "END"}, "END"),
        ({"stop_reason": None, "matched_stop": 151645}, None),
        ({"stop_reason": "<|im_end|>"}, None),
        ({}, None),
    ],
)
def test_the_stop_string_that_matched_is_read(more, matched):
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", **more}]}
    assert said(last) == [BEGAN, stop(stop_string=matched)]


@pytest.mark.parametrize(
    ("chunks", "error"),
    [
        ([chunk(content="a")], "UpstreamDied"),
        ([], "UpstreamDied"),
        ([chunk("abort")], "UpstreamDied"),
        ([chunk("error")], "UpstreamDied"),
        ([{"error": {"message": "died", "code": "upstream_died"}}], "UpstreamDied"),
        ([{"error": {"message": "CUDA error", "code": 500}}], "UpstreamFailed"),
        ([{"error": "CUDA error"}], "UpstreamFailed"),
        ([{"object": "error", "message": "too busy", "code": 429}], "RateLimited"),
        ([[1]], "UpstreamFailed"),
        ([{"choices": "x"}], "UpstreamFailed"),
    ],
)
def test_what_broke_is_a_failure_and_the_end(chunks, error):
    for done in (True, False):
        *_, last = said(*chunks, chunk("stop") if error == "UpstreamFailed" else {}, done=done)
        assert isinstance(last, Failed)
        assert type(last.error).__name__ == error


def test_a_stream_that_is_cut_off_is_a_failure():
    decoder = CLIENT.decoder(ASK)
    decoder.feed(b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\ndata: {"choi')
    [(choice, failed)] = decoder.end()

    assert (choice, failed.error.code) == (0, "upstream_died")


def test_of_two_answers_both_have_to_end():
    ask = attrs.evolve(ASK, n=2)
    second = {"choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": "stop"}]}
    usage = {"choices": [], "usage": USAGE}
    both = said(chunk("stop"), second, usage, ask=ask)

    assert both[-2:] == [stop(usage=FIVE), (1, stop())]
    assert isinstance(said(chunk("stop"), usage, ask=ask)[-1], Failed)


def test_thoughts_have_no_log_probabilities():
    token = {"token": "x", "logprob": -1.0, "bytes": [120], "top_logprobs": []}
    thought = {**chunk(reasoning_content="x")["choices"][0], "logprobs": {"content": [token]}}
    ask = attrs.evolve(ASK, sampling=Sampling(logprobs=0))

    assert said({"choices": [thought]}, chunk("stop"), ask=ask) == [
        *(BEGAN, ThinkingDelta("x"), stop()),
    ]


def test_bare_prompts_cannot_be_asked_of_a_chat_server():
    with pytest.raises(UnsupportedParameter) as caught:
        CLIENT.render_request(ChatRequest(id="r1", model="m", prompts=("once",)))

    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("reasoning", "asked"),
    [
        ({}, {}),
        ({"enabled": False}, {"chat_template_kwargs": {"enable_thinking": False}}),
        (
            {"enabled": True, "budget_tokens": 1999},
            {
                "reasoning_effort": "low",
                "thinking_token_budget": 1999,
                "chat_template_kwargs": {"enable_thinking": True},
            },
        ),
        ({"budget_tokens": 7999}, {"reasoning_effort": "medium", "thinking_token_budget": 7999}),
        ({"budget_tokens": 8000}, {"reasoning_effort": "high", "thinking_token_budget": 8000}),
        (
            {"effort": "low", "budget_tokens": 8000},
            {"reasoning_effort": "low", "thinking_token_budget": 8000},
        ),
    ],
)
def test_how_much_to_think_is_asked_in_every_way_servers_know(reasoning, asked):
    request = ChatRequest(id="r1", model="m", reasoning=Reasoning(**reasoning))
    body = json.loads(CLIENT.render_request(request))

    names = "reasoning_effort", "thinking_token_budget", "chat_template_kwargs"
    assert {name: body[name] for name in names if name in body} == asked


def test_a_tool_for_free_text_is_a_function_of_one_string():
    request = ChatRequest(id="r1", model="m", tools=(Tool(name="patch", kind="custom"),))
    [rendered] = json.loads(CLIENT.render_request(request))["tools"]

    assert rendered["function"]["parameters"]["properties"] == {"input": {"type": "string"}}


# Round trips.

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)
logprobs = st.builds(
    TokenLogprob,
    token=texts,
    logprob=st.floats(-100, 0),
    data=st.binary(max_size=4),
    top=st.lists(
        st.builds(TokenLogprob, token=texts, logprob=st.floats(-100, 0), data=st.binary()),
        max_size=2,
    ).map(tuple),
)


@st.composite
def answers(draw, prompt_tokens: int, *, with_logprobs: bool):
    """One answer's events, as a harness yields them."""
    deltas: list[object] = list(map(ThinkingDelta, draw(st.lists(texts, max_size=3))))
    tokens = st.lists(logprobs, max_size=2).map(tuple) if with_logprobs else st.just(())
    calls = draw(st.lists(st.lists(texts, min_size=1, max_size=3), max_size=3))
    deltas += draw(st.lists(st.builds(TextDelta, texts, tokens), max_size=4))
    for index, arguments in enumerate(calls):
        deltas.append(ToolCallStarted(index=index, id=f"call_{index}", name=draw(texts)))
        deltas += [ToolCallDelta(index=index, arguments=piece) for piece in arguments]
        deltas += draw(st.lists(st.builds(TextDelta, texts, tokens), max_size=1))
    reasons = ["length", "content_filter", *(["tool_calls"] if calls else ["stop"])]
    reason = draw(st.sampled_from(reasons))
    return [
        Started(prompt_tokens=prompt_tokens),
        *deltas,
        Finished(
            reason=reason,
            usage=NOTHING,
            stop_string="END" if reason == "stop" and draw(st.booleans()) else None,
        ),
    ]


ODD = [
    b"[DONE]",
    b"null",
    b"{}",
    b'{"choices":null,"error":null}',
    b'{"choices":[{}]}',
    b'{"choices":[{"index":-1,"delta":{"content":"x"}}]}',
    b'{"choices":[{"index":1,"delta":null,"finish_reason":"stop"}]}',
    b'{"choices":[{"delta":{"tool_calls":[{}]},"finish_reason":"length"}]}',
    b'{"choices":[{"delta":{"tool_calls":[{"index":-3,"function":{"name":"f","arguments":[1]}}]}}]}',
    b'{"choices":[{"delta":{"content":"x"},"logprobs":{"content":[]},"finish_reason":"odd"}]}',
    b'{"choices":[],"usage":{}}',
    b'{"choices":[{"delta":{"content":5}}]}',
    b'{"error":[]}',
]
counts = st.integers(0, 10**6)
usages = st.builds(
    Usage,
    prompt_tokens=counts,
    completion_tokens=counts,
    cached_tokens=counts,
    reasoning_tokens=counts,
)


@settings(max_examples=50)
@given(st.data(), st.booleans(), st.integers(1, 3), usages, st.lists(st.integers(0)))
def test_any_answers_encoded_and_cut_anywhere_are_the_same_answers(data, logs, n, usage, cuts):
    """What is lost: times, and which answer took which tokens."""
    sampling = Sampling(stop=("END",), logprobs=2 if logs else None)
    body = CLIENT.render_request(attrs.evolve(ASK, n=n, sampling=sampling))
    ask = DIALECT.parse_request(body, "r1")
    each = [data.draw(answers(usage.prompt_tokens, with_logprobs=logs)) for _ in range(n)]
    each[0][-1] = attrs.evolve(each[0][-1], usage=usage)
    encoder, decoder = DIALECT.encoder(ask, 1), CLIENT.decoder(ask)
    order = data.draw(st.permutations([c for c, events in enumerate(each) for _ in events]))
    coming = [iter(events) for events in each]
    stream = b"".join(encoder.feed(next(coming[choice]), choice) for choice in order)

    bounds = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    read = [pair for a, b in pairwise(bounds) for pair in decoder.feed(stream[a:b])]

    assert decoder.end() == []
    for choice, events in enumerate(each):
        assert [event for number, event in read if number == choice] == events


@given(st.binary(max_size=200), st.lists(st.sampled_from(ODD)), st.integers(1, 2), st.booleans())
def test_whatever_a_server_sends_the_answer_ends_once(junk, odd, n, comes_first):
    ask = attrs.evolve(ASK, n=n)
    stream = b"".join(b"data: " + event + b"\n\n" for event in odd)
    decoder = CLIENT.decoder(ask)

    read = decoder.feed(junk + b"\n\n" + stream if comes_first else stream + junk)
    ends = [event for _, event in (*read, *decoder.end()) if isinstance(event, Finished | Failed)]

    assert len(ends) == 1 if isinstance(ends[0], Failed) else len(ends) == n
    assert decoder.feed(stream + b'data: {"error": "late"}\n\n') == decoder.end() == []


names = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=6)
schemas = st.fixed_dictionaries({"type": st.just("object")}, optional={"properties": st.just({})})
contents = st.lists(texts, max_size=3).map(
    lambda pieces: [{"type": "text", "text": piece} for piece in pieces]
)
images = st.fixed_dictionaries(
    {"url": st.sampled_from(["https://example.org/a.png", "data:image/png;base64,AA=="])},
    optional={"detail": st.sampled_from(["low", "high", "auto"])},
).map(lambda image: {"type": "image_url", "image_url": image})
calls = st.builds(
    lambda name, arguments: {
        "id": f"call_{name}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    },
    names,
    texts,
)


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


@st.composite
def turns(draw):
    """What a conversation has after its system turn."""
    said: list[object] = [user(draw(texts | contents | st.lists(images, min_size=1)))]
    for _ in range(draw(st.integers(0, 2))):
        made = draw(st.lists(calls, max_size=2, unique_by=lambda call: call["id"]))
        optional = {"reasoning_content": texts, "tool_calls": st.just(made)}
        said.append({
            "role": "assistant",
            "content": draw(texts | st.none()),
            **draw(st.fixed_dictionaries({}, optional=optional)),
        })  # fmt: skip
        if "tool_calls" in said[-1]:
            said += [
                {"role": "tool", "tool_call_id": call["id"], "content": draw(texts | contents)}
                for call in made
            ]
        said.append(user(draw(texts | contents)))
    return said


functions = st.lists(
    st.builds(
        lambda name, more: {"type": "function", "function": {"name": name, **more}},
        names,
        st.fixed_dictionaries(
            {}, optional={"description": texts, "parameters": schemas, "strict": st.booleans()}
        ),
    ),
    min_size=1,
    max_size=3,
)
tokens = st.integers(1, 10**6)
ASKED = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "top_k": st.integers(-1, 99),
    "min_p": st.floats(0, 1),
    "repetition_penalty": st.floats(0.01, 10),
    "repeat_penalty": st.floats(0.01, 10),
    "seed": st.integers(-(2**31), 2**31),
    "stop": st.lists(texts, max_size=3) | texts,
    "max_tokens": tokens,
    "max_completion_tokens": tokens,
    "frequency_penalty": st.floats(-2, 2),
    "presence_penalty": st.floats(-2, 2),
    "logit_bias": st.dictionaries(st.integers(0, 9).map(str), st.floats(-100, 100)),
    "n": st.integers(1, 128),
    "parallel_tool_calls": st.booleans(),
    "tool_choice": st.sampled_from(["auto", "none", "required"]),
    "reasoning_effort": st.sampled_from(["none", "minimal", "low", "medium", "high", "xhigh"]),
    "thinking_token_budget": tokens,
    "chat_template_kwargs": st.dictionaries(names, st.integers() | texts),
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}])
    | st.fixed_dictionaries(
        {"name": st.just("a"), "schema": schemas},
        optional={"description": texts, "strict": st.booleans()},
    ).map(lambda schema: {"type": "json_schema", "json_schema": schema}),
}


@given(
    turns(), functions, st.fixed_dictionaries({}, optional=ASKED), st.none() | st.integers(0, 20)
)
def test_any_request_read_and_rendered_reads_the_same(messages, tools, asked, top):
    """
    What is lost: where text was cut into parts; an effort, which a budget brings along;
    and the template's switch, which an effort does.
    """
    logs = {} if top is None else {"logprobs": True, "top_logprobs": top}
    body = {"model": "m", "messages": messages, "tools": tools, **asked, **logs}
    first = DIALECT.parse_request(json.dumps(body).encode(), "r1")
    second = DIALECT.parse_request(CLIENT.render_request(first), "r1")

    assert kept(second) == kept(first)


def kept(request: ChatRequest) -> object:
    """Return what travels; text as one string, a result by its call and text."""
    turns = [
        (
            turn.role,
            turn.text,
            [part for part in turn.parts if not isinstance(part, Text | ToolResult)],
            [(part.call_id, part.text) for part in turn.parts if isinstance(part, ToolResult)],
        )
        for turn in request.messages
    ]
    rest = attrs.evolve(
        request,
        messages=(),
        stream=True,
        include_usage=True,
        private=None,
        reasoning=attrs.evolve(request.reasoning, effort=None),
        template_args={k: v for k, v in request.template_args.items() if k != "enable_thinking"},
    )
    return turns, rest
