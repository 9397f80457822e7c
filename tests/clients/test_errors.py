"""What goes wrong, in each dialect: the exact shape, and what the SDK raises."""

from __future__ import annotations

import attrs
import pytest

from tests.clients.ways import WAYS, Way, completions, responses

OVER = "overloaded_error"
INVALID = "invalid_request_error"


SPOKEN = [(None, name) for name in WAYS]
SPOKEN += [("openai-chat", "responses"), ("openai-chat", "messages")]  # translated


@pytest.fixture(
    scope="module", params=SPOKEN, ids=lambda pair: "-over-".join(filter(None, pair[::-1]))
)
def spoken(request):
    return request.param


@pytest.fixture(scope="module")
def speaks(spoken) -> str | None:
    return spoken[0]


@pytest.fixture(scope="module")
def way(spoken) -> Way:
    return WAYS[spoken[1]]


@attrs.frozen
class Case:
    """A situation: what is asked, and what comes of it with each of the two."""

    text: str
    status: int
    openai_class: str
    code: str
    type: str
    anthropic_class: str
    anthropic_type: str
    anthropic_status: int | None = None
    retry_after: str | None = None
    model: str = "scripted"


REFUSALS = {
    "bad request": Case(
        "refused", 400, "BadRequestError", "invalid_value", INVALID, "BadRequestError", INVALID
    ),
    "context overflow": Case(
        "hello " * 9,
        400,
        "BadRequestError",
        "context_length_exceeded",
        INVALID,
        "BadRequestError",
        INVALID,
        model="small",
    ),
    "unknown model": Case(
        "hello",
        404,
        "NotFoundError",
        "model_not_found",
        INVALID,
        "NotFoundError",
        "not_found_error",
        model="nobody",
    ),
    "rate limit": Case(
        "busy",
        429,
        "RateLimitError",
        "queue_full",
        "rate_limit_error",
        "RateLimitError",
        "rate_limit_error",
        retry_after="7",
    ),
    "overload": Case(
        "loading",
        503,
        "InternalServerError",
        "model_loading",
        OVER,
        "OverloadedError",
        OVER,
        529,
        "9",
    ),
    "nobody there": Case(
        "away",
        503,
        "InternalServerError",
        "no_node_available",
        "api_error",
        "OverloadedError",
        OVER,
        529,
        "5",
    ),
    "a bug": Case(
        "bug",
        500,
        "InternalServerError",
        "internal_error",
        "server_error",
        "InternalServerError",
        "api_error",
    ),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("situation", REFUSALS)
def test_what_is_refused_before_the_answer_is_the_error_its_users_expect(
    fleet, way, situation, stream
):
    case = REFUSALS[situation]
    name = case.openai_class if way.is_openai else case.anthropic_class
    with way.client(fleet, max_retries=0) as ai:
        with pytest.raises(way.sdk.APIStatusError) as caught:
            way.ask(ai, case.text, case.model, stream=stream)

    error = caught.value
    assert type(error).__name__ == name
    assert error.response.headers.get("retry-after") == case.retry_after
    assert error.response.headers["content-type"] == "application/json"
    if way.is_openai:
        expected = case.status, case.code, case.type
        if case.status == 500 and fleet.speaks:  # not ours
            expected = 502, "upstream_failed", "api_error"
        assert (error.status_code, error.code, error.type) == expected
        assert {"message", "type", "param", "code"} <= error.response.json()["error"].keys()
        assert error.request_id == error.response.headers["x-request-id"]
    else:
        assert error.status_code == (case.anthropic_status or case.status)
        body = error.response.json()
        assert body.keys() == {"type", "error", "request_id"}
        assert body["type"] == "error"
        assert body["error"].keys() >= {"type", "message"}
        assert error.type == case.anthropic_type
        assert error.request_id == body["request_id"] == error.response.headers["request-id"]


def test_a_prompt_that_is_too_long_says_by_how_much(fleet, way):
    with way.client(fleet, max_retries=0) as ai:
        with pytest.raises(way.sdk.BadRequestError) as caught:
            way.ask(ai, "hello " * 9, "small")

    said = caught.value.response.json()["error"]["message"]
    if way.is_openai:
        assert said == "maximum context length is 8 tokens, the prompt has 9"
    else:
        assert said == "prompt is too long: 9 tokens > 8 maximum"


def test_an_unknown_model_is_not_retried_and_the_nearest_is_named(fleet, way):
    with way.client(fleet) as ai:
        with pytest.raises(way.sdk.NotFoundError, match="scripted"):
            way.ask(ai, "hello", "script")
    assert not fleet.harness.requests


def test_busy_servers_are_asked_again_when_they_say(fleet, way):
    with way.client(fleet, max_retries=1) as ai:
        way.ask(ai, "busy-once")

    assert len(fleet.harness.requests) == 2


@pytest.mark.parametrize("word", ["die", "die-thinking", "die-calling"])
def test_a_death_in_the_middle_of_a_stream_is_an_error(fleet, way, word):
    seen = []
    with way.client(fleet) as ai:
        if way.ask is responses:
            seen = list(way.ask(ai, word, stream=True))
            failed = seen.pop()
            assert failed.type == "response.failed"
            assert failed.response.status == "failed"
            assert failed.response.error.code == "server_error"
            assert "the worker died" in failed.response.error.message
        else:
            with pytest.raises(way.sdk.APIError) as caught:
                seen.extend(way.ask(ai, word, stream=True))
            body = caught.value.body
            if way.is_openai:
                assert body["code"] == "upstream_died"
                assert body["message"] == "the worker died"
            else:
                assert body["type"] == "error"
                assert body["error"] == {"type": "api_error", "message": "the worker died"}
    assert seen or way.ask is completions  # which shows neither thoughts nor calls
    assert len(fleet.harness.requests) == 1


def test_a_death_in_the_middle_of_a_whole_answer_is_an_error(fleet, way):
    with way.client(fleet, max_retries=0) as ai:
        with pytest.raises(way.sdk.InternalServerError) as caught:
            way.ask(ai, "die")

    assert "the worker died" in str(caught.value)
