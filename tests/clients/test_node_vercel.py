"""Vercel's ai SDK, by way of its providers."""

from __future__ import annotations

import pytest

from tests.clients import turns

TOLD = "".join(turns.HELLO)
THOUGHT = "".join(turns.THOUGHTS)
ANSWER = "".join(turns.ANSWER)

pytestmark = [pytest.mark.timeout(90), pytest.mark.xdist_group("node vercel")]


@pytest.fixture(scope="module")
def came(run_node):
    return run_node("vercel")


PROVIDERS = ["compatible", "chat", "responses", "messages"]
each_provider = pytest.mark.parametrize("provider", PROVIDERS)


@each_provider
def test_gets_a_text(came, provider):
    answer = came[f"{provider}:text"]

    assert (answer["text"], answer["finishReason"]) == (TOLD, "stop")
    assert (answer["usage"]["inputTokens"], answer["usage"]["outputTokens"]) == (2, 4)


@each_provider
def test_gets_a_stream(came, provider):
    answer = came[f"{provider}:stream"]

    assert (answer["text"], answer["errors"]) == (TOLD, [])
    if provider not in ("chat", "responses"):  # these have no eye for thoughts
        assert answer["thought"] == THOUGHT


@each_provider
def test_runs_tools(came, provider):
    answer = came[f"{provider}:tools"]

    assert (answer["called"], answer["text"]) == (["Paris", "Oslo"], ANSWER)
    assert answer["reasons"] == ["tool-calls", "stop"]


@each_provider
def test_gets_an_object(came, provider):
    assert came[f"{provider}:object"] == {"name": "Bread", "steps": 3}


@each_provider
def test_is_told_of_a_death_in_the_middle_of_a_stream(came, provider):
    assert "the worker died" in str(came[f"{provider}:die"]["errors"])


@each_provider
def test_is_told_that_the_servers_are_busy(came, provider):
    assert came[f"{provider}:busy"]["status"] == 429
