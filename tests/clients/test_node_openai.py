"""The openai SDK for node: chat completions, responses and the smaller ones."""

from __future__ import annotations

import pytest

from tests.clients import turns

TOLD = "".join(turns.HELLO)
THOUGHT = "".join(turns.THOUGHTS)
ANSWER = "".join(turns.ANSWER)


def test_gets_a_whole_answer(node, fleet):
    answer = node("openai", "whole")

    assert answer["text"] == TOLD
    assert answer["usage"]["total_tokens"] == 6
    assert answer["id"] == fleet.last.id


def test_gets_a_stream(node):
    answer = node("openai", "stream")

    assert (answer["text"], answer["thought"]) == (TOLD, THOUGHT)
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2


def test_runs_tools(node):
    answer = node("openai", "tools")

    assert (answer["called"], answer["text"]) == (["Paris", "Oslo"], ANSWER)


def test_parses_an_answer(node, fleet):
    assert node("openai", "parse") == {"name": "Bread", "steps": 3}
    assert fleet.last.format.name == "recipe"


def test_gets_a_response(node):
    answer = node("openai", "responses")

    assert (answer["text"], answer["items"]) == (TOLD, ["reasoning", "message"])
    assert (answer["kinds"][0], answer["kinds"][-1]) == ("response.created", "response.completed")


def test_runs_tools_by_responses(node):
    assert node("openai", "responsesTools")["text"] == ANSWER


def test_gets_a_completion(node):
    assert node("openai", "completions")["text"] == TOLD


def test_gets_embeddings(node):
    one, two = node("openai", "embeddings")

    assert len(one) == len(two) == 4
    assert one[0] < two[0]
    assert sum(value**2 for value in one) == pytest.approx(1)


def test_lists_the_models(node):
    assert set(node("openai", "models")) >= {"scripted", "small", "nick"}


@pytest.mark.parametrize(
    ("case", "raised", "status", "code"),
    [
        ("busy", "RateLimitError", 429, "queue_full"),
        ("unknown", "NotFoundError", 404, "model_not_found"),
        ("overflow", "BadRequestError", 400, "context_length_exceeded"),
        ("die", "APIError", None, "upstream_died"),
    ],
)
def test_raises_what_its_users_expect(node, case, raised, status, code):
    came = node("openai", case)

    assert (came["raised"], came["status"], came["code"]) == (raised, status, code)
