"""The openai SDK for node: chat completions, responses and the smaller ones."""

from __future__ import annotations

import pytest

from tests.clients import turns

TOLD = "".join(turns.HELLO)
THOUGHT = "".join(turns.THOUGHTS)
ANSWER = "".join(turns.ANSWER)
pytestmark = [pytest.mark.timeout(90), pytest.mark.xdist_group("node openai")]


@pytest.fixture(scope="module")
def came(run_node):
    return run_node("openai")


def test_gets_a_whole_answer(came, servers):
    answer = came["whole"]

    assert answer["text"] == TOLD
    assert answer["usage"]["total_tokens"] == 6
    assert answer["id"] in [request.id for request in servers.harness.requests]


def test_gets_a_stream(came):
    answer = came["stream"]

    assert (answer["text"], answer["thought"]) == (TOLD, THOUGHT)
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2


def test_runs_tools(came):
    answer = came["tools"]

    assert (answer["called"], answer["text"]) == (["Paris", "Oslo"], ANSWER)


def test_parses_an_answer(came, servers):
    assert came["parse"] == {"name": "Bread", "steps": 3}
    formats = [request.format for request in servers.harness.requests if request.format]
    assert [wanted.name for wanted in formats] == ["recipe"]


def test_gets_a_response(came):
    answer = came["responses"]

    assert (answer["text"], answer["items"]) == (TOLD, ["reasoning", "message"])
    assert (answer["kinds"][0], answer["kinds"][-1]) == ("response.created", "response.completed")


def test_runs_tools_by_responses(came):
    assert came["responsesTools"]["text"] == ANSWER


def test_gets_a_completion(came):
    assert came["completions"]["text"] == TOLD


def test_gets_embeddings(came):
    one, two = came["embeddings"]

    assert len(one) == len(two) == 4
    assert one[0] < two[0]
    assert sum(value**2 for value in one) == pytest.approx(1)


def test_lists_the_models(came):
    assert set(came["models"]) >= {"scripted", "small", "nick"}


@pytest.mark.parametrize(
    ("case", "raised", "status", "code"),
    [
        ("busy", "RateLimitError", 429, "queue_full"),
        ("unknown", "NotFoundError", 404, "model_not_found"),
        ("overflow", "BadRequestError", 400, "context_length_exceeded"),
        ("die", "APIError", None, "upstream_died"),
    ],
)
def test_raises_what_its_users_expect(came, case, raised, status, code):
    found = came[case]

    assert (found["raised"], found["status"], found["code"]) == (raised, status, code)
