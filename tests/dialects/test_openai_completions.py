"""OpenAI's legacy Completions: what no golden case shows."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.chat.events import Finished, Started, TextDelta, TokenLogprob, Usage
from cortex.chat.request import ChatRequest
from cortex.dialects.openai_completions import OpenAICompletions
from cortex.dialects.openai_completions.logprobs import Columns
from cortex.dialects.sse import SseReader
from cortex.errors import InvalidRequest
from cortex.testing import dialect_contract

DIALECT = OpenAICompletions()
DONE = Finished(reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=1))


def body(**more: object) -> bytes:
    return json.dumps({"model": "m", "prompt": "once", **more}).encode()


def parse(**more: object) -> ChatRequest:
    return DIALECT.parse_request(body(**more), "r1")


def test_it_keeps_the_contract():
    dialect_contract(OpenAICompletions(), body(), body(stream=True))


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ("a",)),
        (["a"], ("a",)),
        (["a", "b"], ("a", "b")),
        ([1], ((1,),)),
        ([1, 0], ((1, 0),)),
        ([[1]], ((1,),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
    ],
)
def test_a_prompt_is_read_in_every_spelling(prompt, prompts):
    assert parse(prompt=prompt).prompts == prompts


@pytest.mark.parametrize(
    ("asked", "param", "message"),
    [
        ({"prompt": None}, "prompt", "prompt: expected str | array, got null"),
        ({"prompt": 5}, "prompt", "prompt: expected str | array, got int"),
        ({"prompt": ""}, "prompt", "prompt is empty"),
        ({"prompt": [[1], []]}, "prompt[1]", "prompt[1] is empty"),
        ({"prompt": [[1], 2]}, "prompt", "prompt: expected strings, token ids or lists of"),
        ({"prompt": [-1]}, "prompt[0]", "prompt[0]: expected int >= 0"),
        ({"prompt": [True]}, "prompt[0]", "prompt[0]: expected int | str | array, got bool"),
        ({"prompt": ["a"] * 2049}, "prompt", "prompt: expected 1 to 2048 elements, got 2049"),
        ({"prompt": ["a"] * 17, "n": 128}, "prompt", "prompt: over 2048 answers are asked for"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens: expected int >= 1"),
        ({"best_of": 129}, "best_of", "best_of: expected int <= 128"),
        ({"logprobs": True}, "logprobs", "logprobs: expected int | null, got bool"),
    ],
)
def test_a_bad_value_is_refused_with_its_path(asked, param, message):
    with pytest.raises(InvalidRequest) as caught:
        parse(**asked)

    assert caught.value.param == param
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    "ignored",
    [
        {"n": 1, "best_of": 1, "echo": False, "suffix": None, "logprobs": None, "stream": None},
        {"suffix": "", "user": "u", "max_tokens": None},
    ],
)
def test_what_says_nothing_or_is_unknown_is_accepted(ignored):
    assert parse(**ignored) == parse()


@pytest.mark.parametrize(("n", "best_of", "made"), [(2, None, 2), (None, 3, 3), (2, 2, 2)])
def test_best_of_is_how_many_are_made(n, best_of, made):
    request = parse(n=n, best_of=best_of)

    assert request.n == made
    assert (request.sampling.logprobs is not None) is (made > (n or 1))  # to tell the best


def test_a_keep_alive_is_a_chunk_without_text():
    encoder = DIALECT.encoder(parse(stream=True), 1)
    assert encoder.keep_alive() == b": keep-alive\n\n"
    encoder.feed(Started(prompt_tokens=1))

    [(_, chunk)] = SseReader().feed(encoder.keep_alive())
    assert json.loads(chunk)["choices"][0]["text"] == ""
    assert DIALECT.encoder(parse(), 1).keep_alive() == b""


texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=9)


@settings(max_examples=50)
@given(st.lists(texts, min_size=1, max_size=4), st.booleans(), st.randoms(use_true_random=False))
def test_any_texts_arrive_whole_in_both_kinds_of_answer(answers, echo, random):
    prompts = [f"<{number}>" for number in range(len(answers))]
    request = parse(prompt=prompts, echo=echo, stream=True)
    queues = [[Started(prompt_tokens=1), *map(TextDelta, said), DONE] for said in answers]
    order = [choice for choice, events in enumerate(queues) for _ in events]
    random.shuffle(order)
    stream, whole = (
        DIALECT.encoder(request, 1),
        DIALECT.encoder(parse(prompt=prompts, echo=echo), 1),
    )
    sent = reply = b""
    for choice in order:
        event = queues[choice].pop(0)
        sent += stream.feed(event, choice)
        reply += whole.feed(event, choice)

    *chunks, done = [data for _, data in SseReader().feed(sent)]
    streamed = ["" for _ in answers]
    for chunk in chunks:
        [choice] = json.loads(chunk)["choices"]
        streamed[choice["index"]] += choice["text"]
    expected = [
        (prompt if echo else "") + "".join(said)
        for prompt, said in zip(prompts, answers, strict=True)
    ]
    assert done == b"[DONE]"
    assert streamed == expected
    assert [choice["text"] for choice in json.loads(reply)["choices"]] == expected


@given(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.integers(0), max_size=9))
def test_offsets_count_characters_wherever_tokens_are_cut(text, cuts):
    data = text.encode()
    bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    pieces = [data[a:b] for a, b in pairwise(bounds)]
    tokens = [TokenLogprob(token="\ufffd", logprob=-1, data=piece) for piece in pieces]

    half = len(tokens) // 2
    columns = Columns(0)
    offsets = [
        offset
        for some in (tokens[:half], tokens[half:])
        for offset in columns.render(some)["text_offset"]
    ]

    before = [data[:start].decode("utf-8", "ignore") for start in bounds[:-1]]
    assert offsets == [len(said) for said in before]
