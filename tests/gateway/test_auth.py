"""Whose a request is, what that lets it do, and what a refusal says."""

from __future__ import annotations

import asyncio
import json

import pytest

import cortex
from cortex.config.schema import AuthSection
from cortex.errors import ConfigError, NotAuthenticated
from cortex.fleet.model import ModelSpec
from cortex.fleet.principal import Key, Limits, Principal, digest
from cortex.testing import FakeNeuron, until
from tests.gateway.running import Wire, bearer, chat, running

MODELS = (ModelSpec(id="org/small"), ModelSpec(id="org/large"), ModelSpec(id="m"))


def key(name: str, **limits) -> Key:
    return Key(name=name, sha256=digest(f"secret of {name}"), **limits)


ZED = key("zed")
ROOT = key("root", admin=True)


def keys(*some: Key, **more) -> AuthSection:
    return AuthSection(keys=some, **more)


async def status(gateway, method: str, path: str, headers=None, **more) -> int:
    async with gateway.client.request(method, gateway.url + path, headers=headers, **more) as said:
        return said.status


ANTHROPIC = {"anthropic-version": "2023-06-01"}
DOORS = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/m"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/api/v1/fleet"),
    ("GET", "/api/v1/plugins"),
    ("POST", "/api/v1/models/m/load"),
    ("POST", "/api/v1/models/m/unload"),
    ("GET", "/no/such/path"),
    ("GET", "//v1/models"),
    ("GET", "/v1/../v1/models"),
    ("GET", "/%2e/api/v1/fleet"),
]


@pytest.mark.parametrize(("method", "path"), DOORS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("wrong"),
        bearer(""),
        {"x-api-key": "wrong"},
        {"Authorization": "Basic c2VjcmV0IG9mIHplZA=="},
        {"Authorization": "secret of zed"},
        {"x-cortex-principal": "root"},
    ],
)
async def test_where_keys_are_required_nothing_is_reached_without_one(method, path, headers):
    async with (
        FakeNeuron(["m"]) as node,
        running(node, auth=keys(ZED, ROOT, require=True)) as gateway,
    ):
        assert await status(gateway, method, path, headers, data=chat("m")) == 401
        assert node.counts["chat"] == node.counts["unload"] == 0


async def test_no_route_but_three_answers_without_a_key():
    async with FakeNeuron(["m"]) as node, running(node, auth=keys(ZED, require=True)) as gateway:
        for route in gateway.gateway.application().router.routes():
            path = route.resource.canonical.replace("{", "").replace("}", "")
            known = 200 if path in ("/", "/health", "/openapi.json") else 401
            assert await status(gateway, route.method, path) == known, path


@pytest.mark.parametrize(
    "headers",
    [
        bearer("secret of zed"),
        {"Authorization": "bearer secret of zed"},
        {"x-api-key": "secret of zed"},
        {"Authorization": "Bearer dummy", "x-api-key": "secret of zed"},
        {"Authorization": "Bearer secret of zed", "x-api-key": "dummy"},
    ],
)
async def test_a_key_is_found_wherever_clients_put_it(headers):
    async with FakeNeuron(["m"]) as node, running(node, auth=keys(ZED, require=True)) as gateway:
        assert await status(gateway, "GET", "/v1/models", headers) == 200
        assert await status(gateway, "POST", "/v1/chat/completions", headers, data=chat("m")) == 200
        assert node.headers[-1]["x-cortex-principal"] == "zed"
        assert "x-api-key" not in node.headers[-1]
        assert "authorization" not in node.headers[-1]


async def test_a_refusal_is_in_the_words_of_the_dialect():
    async with FakeNeuron(["m"]) as node, running(node, auth=keys(ZED, require=True)) as gateway:
        said = await gateway.refused(401, "invalid_api_key")
        assert said["type"] == "invalid_request_error"
        assert said["message"].startswith("a key is needed (send it as Authorization: Bearer")
        url, body = f"{gateway.url}/v1/messages", b"{}"
        async with gateway.client.post(url, data=body, headers=ANTHROPIC) as response:
            assert response.status == 401
            assert (await response.json())["error"]["type"] == "authentication_error"


async def test_a_placeholder_is_anonymous_and_a_known_key_has_its_own_limits():
    auth = keys(key("zed", models=("m",)), anonymous=Limits(models=("org/*",)))
    async with FakeNeuron(["m", "org/small"]) as node, running(node, auth=auth) as gateway:
        await gateway.ask("org/small", key="sk-placeholder")
        assert node.headers[-1]["x-cortex-principal"] == "anonymous"
        await gateway.refused(403, "model_not_allowed", "m", key="sk-placeholder")
        await gateway.ask("m", key="secret of zed")
        await gateway.refused(403, "model_not_allowed", "org/small", key="secret of zed")


async def test_priority_and_weight_go_on_to_the_neuron_unless_they_say_nothing():
    auth = keys(key("zed", priority=-2, weight=2.5), key("amy"))
    async with FakeNeuron(["m"]) as node, running(node, auth=auth) as gateway:
        for who, told in (("zed", ("-2", "2.5")), ("amy", (None, None))):
            await gateway.ask("m", key=f"secret of {who}")
            sent = node.headers[-1]
            assert (sent.get("x-cortex-priority"), sent.get("x-cortex-weight")) == told


async def test_what_a_client_says_it_is_goes_nowhere():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        headers = {"x-cortex-principal": "root", "x-cortex-priority": "9"}
        assert await status(gateway, "POST", "/v1/chat/completions", headers, data=chat("m")) == 200
        assert node.headers[-1]["x-cortex-principal"] == "anonymous"
        assert "x-cortex-priority" not in node.headers[-1]


async def test_models_are_listed_as_far_as_they_may_be_used():
    auth = keys(key("zed", models=("org/s*", "fast")), key("amy", models=("org/large",)), ROOT)
    aliases = {"fast": "m", "big": "org/large"}
    async with (
        FakeNeuron() as node,
        running(node, models=MODELS, aliases=aliases, auth=auth) as gateway,
    ):

        async def listed(key: str) -> set[str]:
            return {row["id"] for row in (await gateway.get("/v1/models", key))["data"]}

        assert await listed("secret of zed") == {"org/small", "fast"}
        assert await listed("secret of amy") == {"org/large", "big"}
        assert await listed("secret of root") == {"org/small", "org/large", "m", "fast", "big"}
        await gateway.ask("fast", key="secret of zed")
        await gateway.refused(403, "model_not_allowed", "m", key="secret of zed")
        await gateway.ask("big", key="secret of amy")
        assert await status(gateway, "GET", "/v1/models/m", bearer("secret of zed")) == 404


async def test_the_admin_api_wants_an_admin_once_there_is_a_key():
    async with FakeNeuron(["m"]) as node:
        async with running(node) as gateway:
            assert await status(gateway, "GET", "/api/v1/fleet") == 200
        async with running(node, auth=keys(ZED, ROOT)) as gateway:
            for path in ("/api/v1/fleet", "/api/v1/../v1/fleet", "/api/v1/plugins"):
                assert await status(gateway, "GET", path) == 401
                assert await status(gateway, "GET", path, bearer("secret of zed")) == 403
                assert await status(gateway, "GET", path, bearer("secret of root")) == 200


async def test_a_limit_says_which_and_when():
    auth = keys(key("zed", requests_per_minute=1, max_concurrency=1))
    async with FakeNeuron(["m"]) as node, running(node, auth=auth) as gateway:
        await gateway.ask(key="secret of zed")
        said = await gateway.refused(429, "rate_limit_exceeded", key="secret of zed")
        assert said["type"] == "rate_limit_error"
        assert said["limit"] == "requests_per_minute"
        assert 58 <= int(said["headers"]["Retry-After"]) <= 60
        await gateway.ask()


async def test_a_spent_budget_is_a_quota():
    auth = keys(key("zed", budget_tokens=5))
    async with FakeNeuron(["m"]) as node, running(node, auth=auth) as gateway:
        await gateway.ask(key="secret of zed")
        said = await gateway.refused(429, "insufficient_quota", key="secret of zed")
        assert said["message"] == "zed has used 10 of its 5 tokens of 30 days"
        assert int(said["headers"]["Retry-After"]) > 28 * 86_400


@pytest.mark.parametrize("ending", ["whole", "midway", "silent", "hang"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_place_is_free_again_whatever_became_of_the_request(ending, stream):
    auth = keys(key("zed", max_concurrency=2))
    async with FakeNeuron(["m"]) as node, running(node, auth=auth) as gateway:
        node.ending, node.token_s = ending, 0.01
        accounts = gateway.gateway._accounts._accounts
        async with (
            await Wire.to(gateway.address) as leaves,
            await Wire.to(gateway.address) as stays,
        ):
            for client in (leaves, stays):
                client.post(chat("m", stream=stream), headers="x-api-key: secret of zed\r\n")
            await until(lambda: node.counts["chat"] >= 2)
            leaves.leave()
            if ending != "hang":
                await stays.head()
        await until(lambda: len(gateway.records) == 2)
        assert accounts["zed"].in_flight == 0


async def test_concurrency_is_bounded_under_a_crowd():
    auth = keys(key("zed", max_concurrency=3))
    async with FakeNeuron(["m"]) as node, running(node, auth=auth) as gateway:
        node.token_s, most = 0.01, 0

        async def one() -> int:
            nonlocal most
            url = "/v1/chat/completions"
            said = await status(gateway, "POST", url, bearer("secret of zed"), data=chat("m"))
            most = max(most, node.in_flight["m"])
            return said

        said = await asyncio.gather(*(one() for _ in range(40)))
        assert set(said) == {200, 429}
        assert said.count(200) == node.counts["chat"]
        assert most <= 3


async def test_another_configuration_holds_from_the_next_request_on():
    async with FakeNeuron(["m"]) as node, running(node, auth=keys(ZED)) as gateway:
        await gateway.ask(key="secret of zed")
        plugins = gateway.gateway._plugins
        gateway.gateway.auth = type(gateway.gateway.auth).of(keys(ROOT, require=True), plugins, "")
        await gateway.refused(401, "invalid_api_key", key="secret of zed")
        await gateway.ask(key="secret of root")


class Badges:
    """Somebody else's way to know who asks."""

    def __init__(self, keys) -> None:
        self.keys = keys

    def identify(self, key, headers):
        match headers.get("x-badge"):
            case None:
                return None
            case "stolen":
                raise NotAuthenticated("this badge is stolen")
            case badge:
                return Principal(name=badge, max_concurrency=1)


class Offering:
    @cortex.hookimpl
    def cortex_register_authenticators(self, register):
        register("badges", Badges)


async def test_authenticators_are_asked_in_order():
    auth = keys(ZED, use=("badges", "keys"), require=True)
    async with (
        FakeNeuron(["m"]) as node,
        running(node, auth=auth, plugins=[Offering()]) as gateway,
    ):
        for headers, code, who in (
            ({"x-badge": "amy"}, 200, "amy"),
            ({"x-badge": "amy", **bearer("secret of zed")}, 200, "amy"),
            (bearer("secret of zed"), 200, "zed"),
            ({"x-badge": "stolen", **bearer("secret of zed")}, 401, "zed"),
            ({}, 401, "zed"),
        ):
            url = "/v1/chat/completions"
            assert await status(gateway, "POST", url, headers, data=chat("m")) == code
            assert node.headers[-1]["x-cortex-principal"] == who


async def test_records_and_heads_name_who_asked():
    auth = keys(key("zed", priority=7, weight=2.5))
    async with FakeNeuron(["m"]) as node, running(node, auth=auth) as gateway:
        await gateway.ask(key="secret of zed")
        await gateway.ask()
        await until(lambda: len(gateway.records) == 2)
        assert [record.principal for record in gateway.records] == ["zed", "anonymous"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (AuthSection(use=("kees",)), "x: auth.use: no authenticator is called 'kees'"),
        (AuthSection(options={"oidc": {}}), "x: auth.options: no authenticator is called 'oidc'"),
        (
            AuthSection(options={"keys": {"a": 1}}),
            "x: auth.options.keys: authenticator 'keys' takes no options",
        ),
    ],
)
def test_an_authenticator_that_is_not_there_keeps_the_gateway_from_starting(section, message):
    from cortex.config.schema import PluginSettings
    from cortex.gateway.auth import Auth
    from cortex.plugins import Plugins

    with pytest.raises(ConfigError) as caught:
        Auth.of(section, Plugins(PluginSettings(only=frozenset())), "x")
    assert str(caught.value).startswith(message)


def test_a_digest_is_what_sha256sum_says():
    assert digest("abc").startswith("ba7816bf8f01cfea")
    assert json.dumps(digest("\udcff"))
