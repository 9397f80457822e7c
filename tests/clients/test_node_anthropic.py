"""The anthropic SDK for node."""

from __future__ import annotations

import pytest

from tests.clients import turns

TOLD = "".join(turns.HELLO)
THOUGHT = "".join(turns.THOUGHTS)
ANSWER = "".join(turns.ANSWER)
pytestmark = [pytest.mark.timeout(90), pytest.mark.xdist_group("node anthropic")]


@pytest.fixture(scope="module")
def came(run_node):
    return run_node("anthropic")


def test_gets_a_whole_answer(came, servers):
    answer = came["whole"]

    assert (answer["text"], answer["stop_reason"]) == (TOLD, "end_turn")
    assert answer["usage"]["output_tokens"] == 4
    assert answer["id"] in [request.id for request in servers.harness.requests]


def test_gets_a_stream(came):
    answer = came["stream"]

    assert (answer["text"], answer["thought"]) == (TOLD, THOUGHT)
    assert (answer["kinds"][0], answer["kinds"][-1]) == ("message_start", "message_stop")


def test_runs_tools(came):
    answer = came["tools"]

    assert (answer["called"], answer["text"]) == (["Paris", "Oslo"], ANSWER)


def test_counts(came):
    assert came["count"]["input_tokens"] == 2


def test_lists_the_models(came):
    assert set(came["models"]) >= {"scripted", "small", "nick"}


@pytest.mark.parametrize(
    ("case", "raised", "status", "kind"),
    [
        ("busy", "RateLimitError", 429, "rate_limit_error"),
        ("loading", "OverloadedError", 529, "overloaded_error"),
        ("unknown", "NotFoundError", 404, "not_found_error"),
        ("overflow", "BadRequestError", 400, "invalid_request_error"),
        ("die", "APIError", None, "api_error"),
    ],
)
def test_raises_what_its_users_expect(came, case, raised, status, kind):
    found = came[case]

    assert (found["raised"], found["status"], found["type"]) == (raised, status, kind)
