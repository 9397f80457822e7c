"""A server that is not ours answers as a node does; what it lacks is never asked of it."""

from __future__ import annotations

import json

import pytest

from cortex.chat.events import Usage
from cortex.config.schema import UpstreamEntry
from cortex.fleet.model import ModelSpec
from cortex.gateway.recording import MOST_TOKENS
from cortex.gateway.tail import Tail
from cortex.testing import FakeNeuron, until
from tests.gateway.running import running
from tests.gateway.test_relay import INTERIM, chunked, raw


def upstream(node: FakeNeuron, **more) -> UpstreamEntry:
    return UpstreamEntry(name="up", endpoint=node.endpoint, **more)


async def test_what_an_upstream_lists_can_be_asked_for():
    async with FakeNeuron(["org/m"]) as server:
        async with running(models=[], upstreams=[upstream(server)]) as gateway:
            answer = await gateway.ask("org/m")
            listed = await gateway.get("/v1/models")
            health = await gateway.get("/health")

    assert answer["choices"][0]["message"]["content"] == "one two three"
    assert answer["headers"]["x-cortex-node"] == "up"
    assert [row["id"] for row in listed["data"]] == ["org/m"]
    assert health["nodes"] == {"healthy": 1, "total": 1}


async def test_an_endpoint_may_end_in_v1():
    async with FakeNeuron(["m"]) as server:
        entry = UpstreamEntry(name="up", endpoint=f"{server.endpoint}/v1/")
        async with running(models=[], upstreams=[entry]) as gateway:
            assert (await gateway.ask())["model"] == "m"


async def test_a_token_is_sent_as_a_bearer():
    async with FakeNeuron(["m"]) as server:
        async with running(models=[], upstreams=[upstream(server, token="t0")]) as gateway:
            await gateway.ask()

    assert server.headers[0]["authorization"] == "Bearer t0"


async def test_only_the_models_of_its_table_are_asked_of_it():
    async with FakeNeuron(["a", "b"]) as server:
        async with running(models=[], upstreams=[upstream(server, models=("a",))]) as gateway:
            await gateway.ask("a")
            await gateway.refused(404, "model_not_found", "b")


async def test_an_alias_becomes_the_name_it_knows():
    async with FakeNeuron(["org/m"]) as server:
        aliases = {"nick": "org/m"}
        async with running(models=[], aliases=aliases, upstreams=[upstream(server)]) as gateway:
            await gateway.ask("nick")

    assert json.loads(server.bodies[0])["model"] == "org/m"


async def test_nothing_is_ever_loaded_on_an_upstream():
    async with FakeNeuron(["m"]) as server:
        models = [ModelSpec(id="other")]
        async with running(models=models, upstreams=[upstream(server)]) as gateway:
            error = await gateway.refused(422, "model_not_feasible", "other")

    assert "up: it serves only what it has" in error["message"]
    assert server.counts["load"] == 0


async def test_an_upstream_that_goes_and_comes_back_is_used_again():
    async with FakeNeuron(["m"]) as server:
        async with running(models=[], upstreams=[upstream(server)]) as gateway:
            await server.stop()
            error = await gateway.refused(503, "no_node_available")
            assert "up: " in error["message"]
            await server.start()
            await until(lambda: all(node.healthy for node in gateway.gateway.nodes))
            await gateway.ask()


@pytest.mark.parametrize(
    ("table", "catalogue"), [({"models": ("m",)}, []), ({}, [ModelSpec(id="m")])]
)
async def test_what_it_may_have_can_be_asked_for_again_before_it_answers(table, catalogue):
    async with FakeNeuron(["m"]) as server:
        pass
    async with running(models=catalogue, upstreams=[upstream(server, **table)]) as gateway:
        error = await gateway.refused(503, "no_node_available")
        assert [row["id"] for row in (await gateway.get("/v1/models"))["data"]] == ["m"]
        await gateway.refused(404, "model_not_found", "n")
        await server.start()
        await until(lambda: all(node.healthy for node in gateway.gateway.nodes))

        await gateway.ask()
        await server.stop()

    assert f"up: {server.endpoint} does not answer: nobody listens there" in error["message"]


@pytest.mark.parametrize(
    ("name", "target"),
    [("claude-opus-5", "m"), ("claude-haiku-4", "small"), ("claude-me", "me"), ("m", "m")],
)
async def test_an_alias_with_a_star_stands_for_what_it_matches(name, target):
    aliases = {"claude-*": "m", "claude-haiku-*": "small", "claude-me": "me"}
    models = [ModelSpec(id=name) for name in ("m", "small", "me")]
    async with FakeNeuron(["m", "small", "me"]) as node:
        async with running(node, models=models, aliases=aliases) as gateway:
            answer = await gateway.ask(name)
            listed = await gateway.get("/v1/models")

    assert answer["headers"]["x-cortex-model"] == target
    assert answer["model"] == name
    assert [row["id"] for row in listed["data"]] == ["m", "small", "me", "claude-me"]


@pytest.mark.parametrize(("asked", "sent"), [(100, 100), (4_000, None)])  # of a window of 4,096
async def test_a_bound_a_small_window_has_no_room_for_is_left_out(asked, sent):
    async with FakeNeuron(["m"]) as server:
        async with running(models=[], upstreams=[upstream(server)]) as gateway:
            body = {"model": "m", "max_tokens": asked}
            body["messages"] = [{"role": "user", "content": "hi"}]
            async with gateway.client.post(f"{gateway.url}/v1/messages", json=body) as response:
                assert response.status == 200

    assert json.loads(server.bodies[0]).get("max_tokens") == sent


async def test_what_its_answers_took_is_read_off_their_end():
    async with FakeNeuron(["m"]) as server:
        server.tells_usage, server.cached_tokens = False, 4
        async with running(models=[], upstreams=[upstream(server)]) as gateway:
            await gateway.ask()
            await gateway.stream(stream_options={"include_usage": True})
            await until(lambda: len(gateway.records) == 2)

    for record in gateway.records:
        assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (7, 3, 4)


async def test_what_no_answer_can_have_taken_spoils_no_counter():
    async with FakeNeuron(["m"]) as server:
        server.tells_usage = False
        server._usage = lambda: Usage(prompt_tokens=10**25, completion_tokens=-7)
        async with running(models=[], upstreams=[upstream(server)]) as gateway:
            await gateway.ask()
            await until(lambda: gateway.records)

    (record,) = gateway.records
    assert (record.prompt_tokens, record.completion_tokens) == (MOST_TOKENS, 0)


async def test_an_answer_that_is_translated_may_come_after_an_interim_one():
    event = {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}
    events = f"data: {json.dumps(event)}\n\n".encode(), b"data: [DONE]\n\n"
    async with raw([INTERIM + chunked(*events)]) as (node, _):
        entry = upstream(node, dialects=("openai-chat",))
        async with running(models=[], upstreams=[entry]) as gateway:
            body = {"model": "m", "max_tokens": 5}
            body["messages"] = [{"role": "user", "content": "hi"}]
            async with gateway.client.post(f"{gateway.url}/v1/messages", json=body) as response:
                said = await response.json()

    assert (response.status, said["content"][0]["text"]) == (200, "hi")


@pytest.mark.parametrize(
    ("end", "counts"),
    [
        ('"usage": {"prompt_tokens": 3, "completion_tokens": 2}}', (3, 2, 0)),
        ('"usage":{"input_tokens":3,"cache_read_input_tokens":4,"output_tokens":2}}', (7, 2, 4)),
        ('"usage":{"input_tokens":3,"output_tokens":2,"input_tokens_details":{"cached_tokens":1}}}',
         (3, 2, 1)),
        ('"usage":{"prompt_tokens":3,"completion_tokens":2},"x":{}}\n\ndata: [DONE]', (3, 2, 0)),
        ('"content":"\\"usage\\":{\\"prompt_tokens\\":9}"}', None),
        ('"usage":null}', None),
        ('"usage":' + "[" * 4000, None),
        ('"usage":{"prompt_tokens":3,"comp', None),
        ('"usage":{"prompt_tokens":"many"}}', None),
    ],
)  # fmt: skip
def test_the_end_of_an_answer_cut_anywhere_says_what_it_took_or_nothing(end, counts):
    whole = b"x" * 9000 + end.encode()
    for at in (1, 8990, 9004, len(whole) - 5):
        tail = Tail()
        tail.feed(whole[:at])
        tail.feed(whole[at:])
        said = tail.usage()
        found = said and (said.prompt_tokens, said.completion_tokens, said.cached_tokens)
        assert found == counts
