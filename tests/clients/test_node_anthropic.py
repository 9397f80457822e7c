"""The anthropic SDK for node."""

from __future__ import annotations

import pytest

from tests.clients import turns

TOLD = "".join(turns.HELLO)
THOUGHT = "".join(turns.THOUGHTS)
ANSWER = "".join(turns.ANSWER)


def test_gets_a_whole_answer(node, fleet):
    answer = node("anthropic", "whole")

    assert (answer["text"], answer["stop_reason"]) == (TOLD, "end_turn")
    assert answer["usage"]["output_tokens"] == 4
    assert answer["id"] == fleet.last.id


def test_gets_a_stream(node):
    answer = node("anthropic", "stream")

    assert (answer["text"], answer["thought"]) == (TOLD, THOUGHT)
    assert (answer["kinds"][0], answer["kinds"][-1]) == ("message_start", "message_stop")


def test_runs_tools(node):
    answer = node("anthropic", "tools")

    assert (answer["called"], answer["text"]) == (["Paris", "Oslo"], ANSWER)


def test_counts(node):
    assert node("anthropic", "count")["input_tokens"] == 2


def test_lists_the_models(node):
    assert set(node("anthropic", "models")) >= {"scripted", "small", "nick"}


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
def test_raises_what_its_users_expect(node, case, raised, status, kind):
    came = node("anthropic", case)

    assert (came["raised"], came["status"], came["type"]) == (raised, status, kind)
