"""Keys of clients: how each SDK sends its own, and what it raises where that is not enough."""

from __future__ import annotations

from hashlib import sha256

import pytest

from cortex.config.schema import AuthSection, Key
from tests.clients import fleet as fleets
from tests.clients.conftest import MODELS
from tests.clients.ways import WAYS


def key(secret: str, **limits) -> Key:
    return Key(name=secret, sha256=sha256(secret.encode()).hexdigest(), **limits)


KEYS = (
    key("any"),
    key("small-only", models=("small",)),
    *(key(f"slow-{name}", requests_per_minute=1) for name in WAYS),
)


@pytest.fixture(scope="module")
def servers():
    auth = AuthSection(require=True, keys=KEYS)
    with fleets.fleet("tests.clients.turns:SCRIPT", MODELS, auth=auth) as running:
        yield running


@pytest.fixture(params=WAYS)
def named(request):
    return request.param, WAYS[request.param]


def test_a_key_that_is_known_may_ask(fleet, named):
    _, way = named
    with way.client(fleet, api_key="any") as ai:
        way.ask(ai, "hello")


def test_a_key_may_be_sent_as_a_token(fleet):
    way = WAYS["messages"]
    with way.client(fleet, api_key=None, auth_token="any") as ai:
        way.ask(ai, "hello")


def test_a_wrong_key_is_an_authentication_error(fleet, named):
    _, way = named
    with way.client(fleet, api_key="wrong") as ai:
        with pytest.raises(way.sdk.AuthenticationError) as caught:
            way.ask(ai, "hello")

    if way.is_openai:
        assert caught.value.code == "invalid_api_key"
    else:
        assert caught.value.type == "authentication_error"
    assert not fleet.harness.requests


def test_a_model_the_key_may_not_use_is_a_permission_error(fleet, named):
    _, way = named
    with way.client(fleet, api_key="small-only") as ai:
        with pytest.raises(way.sdk.PermissionDeniedError) as caught:
            way.ask(ai, "hello")

    assert caught.value.type == "permission_error"


def test_a_key_that_asks_too_often_is_a_rate_limit_error_that_says_when(fleet, named):
    name, way = named
    with way.client(fleet, api_key=f"slow-{name}", max_retries=0) as ai:
        way.ask(ai, "hello")
        with pytest.raises(way.sdk.RateLimitError) as caught:
            way.ask(ai, "hello")

    assert caught.value.type == "rate_limit_error"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
