"""The openai SDK's completions and embeddings, through gateway and neuron."""

from __future__ import annotations

import math

import openai
import pytest

from tests.clients import turns

TOLD = "".join(turns.HELLO)


@pytest.fixture
def ai(fleet):
    with openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0, timeout=10) as ai:
        yield ai


def complete(ai, prompt, **more):
    return ai.completions.create(**{"model": "scripted", "prompt": prompt, **more})


def embed(ai, said, **more):
    return ai.embeddings.create(**{"model": "scripted", "input": said, **more})


def test_a_completion(ai, fleet):
    answer = complete(ai, "hello you", max_tokens=9, stop=["END"], seed=1)

    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (TOLD, "stop")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 4)
    assert fleet.last.prompts == ("hello you",)
    told = fleet.last.sampling
    assert (told.max_tokens, told.stop, told.seed) == (9, ("END",), 1)


def test_a_stream_of_a_completion(ai):
    chunks = list(complete(ai, "hello", stream=True, stream_options={"include_usage": True}))

    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == TOLD
    assert chunks[-1].usage.completion_tokens == 4


def test_completions_of_several_prompts(ai, fleet):
    answer = complete(ai, ["hello you", "long"], n=2)

    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [TOLD, TOLD, *2 * ["".join(turns.CUT)]]
    assert [choice.finish_reason for choice in answer.choices] == [*2 * ["stop"], *2 * ["length"]]
    assert answer.usage.prompt_tokens == 3


def test_a_prompt_may_be_token_ids(ai, fleet):
    complete(ai, [17, 4])

    assert fleet.last.prompts == ((17, 4),)


def test_log_probabilities_of_a_completion(ai):
    found = complete(ai, "hello", logprobs=1).choices[0].logprobs

    assert found.tokens == list(turns.HELLO)
    assert found.token_logprobs == [-0.25] * 4


def test_embeddings_are_as_the_model_made_them(ai, fleet):
    plain = embed(ai, ["one", "two words"], encoding_format="float")
    packed = embed(ai, ["one", "two words"])  # the SDK asks for base64, and unpacks it

    assert [row.index for row in plain.data] == [0, 1]
    assert plain.usage.prompt_tokens == 3
    for row, other in zip(plain.data, packed.data, strict=True):
        assert row.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert math.hypot(*row.embedding) == pytest.approx(1)
    assert fleet.harness.embedded[-1].inputs == ("one", "two words")


def test_embeddings_may_be_short_and_of_token_ids(ai, fleet):
    answer = embed(ai, [[1, 2, 3]], dimensions=2)

    assert len(answer.data[0].embedding) == 2
    assert fleet.harness.embedded[-1].inputs == ((1, 2, 3),)
    assert fleet.harness.embedded[-1].dimensions == 2


def test_embeddings_of_an_unknown_model_are_not_found(ai):
    with pytest.raises(openai.NotFoundError) as caught:
        embed(ai, "one", model="nobody")

    assert caught.value.code == "model_not_found"
