"""Responses that are kept: gone on from, shown, listed and deleted, at a neuron and a gateway."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import attrs
import pytest

from cortex import replies as replies_module
from cortex.config.schema import AuthSection, RepliesSection, UpstreamEntry
from cortex.dialects.openai_chat import OpenAIChat
from cortex.dialects.openai_responses.dialect import OpenAIResponses
from cortex.errors import InvalidRequest, PreviousReplyNotFound
from cortex.fleet.principal import Key, digest
from cortex.testing import FakeNeuron
from tests.gateway.running import running
from tests.neuron.serving import program, serving

DIALECT = OpenAIResponses()


@attrs.define
class Api:
    """A server and a client of it."""

    url: str
    client: aiohttp.ClientSession
    neuron: object

    async def ask(self, text: object = "one two", status: int = 200, **more: object) -> dict:
        body = {"model": "m", "input": text, **more}
        return await self.call("POST", "", status, json=body)

    async def call(self, method: str, path: str, status: int = 200, **more: object) -> dict:
        async with self.client.request(method, f"{self.url}/v1/responses{path}", **more) as answer:
            said = await answer.read()
            assert answer.status == status, said
            if answer.content_type == "text/event-stream":
                return json.loads(said.rpartition(b"\ndata: ")[2])["response"]
            return json.loads(said)

    async def refused(self, code: str, method: str, path: str, status: int, **more: object) -> dict:
        error = (await self.call(method, path, status, **more))["error"]
        assert error["code"] == code
        return error


@asynccontextmanager
async def api(through: str, limits: RepliesSection | None = None):
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(
            serving(replies=limits if through == "neuron" else None)
        )
        await node.load("m")
        url = node.url
        if through == "gateway":
            gateway = await stack.enter_async_context(running(node.url, replies=limits))
            url = gateway.url
        yield Api(url, node.client, node.neuron)


@pytest.fixture(params=["neuron", "gateway"])
def through(request) -> str:
    return request.param


async def input_texts(server: Api, reply_id: str) -> list[str]:
    """Return what was said to an answer, oldest first."""
    page = await server.call("GET", f"/{reply_id}/input_items?order=asc&limit=100")
    return [part["text"] for item in page["data"] for part in item["content"]]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_conversation_goes_on_by_id(through, stream):
    async with api(through) as server:
        first = await server.ask("one", stream=stream)
        second = await server.ask("two", stream=stream, previous_response_id=first["id"])
        third = await server.ask("three", previous_response_id=second["id"])

        assert third["previous_response_id"] == second["id"]
        assert third["usage"]["input_tokens"] == 5  # one one two two three
        said = ["one", "one", "two", "two", "three"]
        assert await input_texts(server, third["id"]) == said


async def test_instructions_are_not_gone_on_from(through):
    async with api(through) as server:
        first = await server.ask("one", instructions="be brief")
        second = await server.ask("two", previous_response_id=first["id"])

        assert (first["usage"]["input_tokens"], second["usage"]["input_tokens"]) == (3, 3)
        assert second["instructions"] is None


async def test_one_conversation_goes_on_in_two_ways(through):
    async with api(through) as server:
        first = await server.ask("one")
        for text in ("two", "three"):
            await server.ask(text, previous_response_id=first["id"])
        last = await server.ask("four", previous_response_id=first["id"])
        assert await input_texts(server, last["id"]) == ["one", "one", "four"]


async def test_a_kept_answer_is_shown_as_it_was_and_deleted(through):
    async with api(through) as server:
        answer = await server.ask("one", metadata={"a": "b"})
        where = f"/{answer['id']}"

        assert await server.call("GET", where) == answer
        deleted = await server.call("DELETE", where)
        assert deleted == {"id": answer["id"], "object": "response", "deleted": True}
        for method, path in (
            ("GET", where),
            ("DELETE", where),
            ("GET", where + "/input_items"),
            ("POST", where + "/cancel"),
        ):
            await server.refused("response_not_found", method, path, 404)


async def test_what_went_on_from_a_deleted_answer_is_whole(through):
    async with api(through) as server:
        first = await server.ask("one")
        second = await server.ask("two", previous_response_id=first["id"])
        await server.call("DELETE", f"/{first['id']}")
        third = await server.ask("three", previous_response_id=second["id"])
        assert third["usage"]["input_tokens"] == 5


async def test_nothing_is_to_be_cancelled(through):
    async with api(through) as server:
        answer = await server.ask("one")
        await server.refused("invalid_value", "POST", f"/{answer['id']}/cancel", 400)


async def test_what_is_not_kept_cannot_be_gone_on_from(through):
    async with api(through) as server:
        answer = await server.ask("one", store=False)
        assert answer["store"] is False
        await server.refused("response_not_found", "GET", f"/{answer['id']}", 404)
        more = {"model": "m", "input": "two", "previous_response_id": answer["id"]}
        error = await server.refused("previous_response_not_found", "POST", "", 400, json=more)
        assert error["param"] == "previous_response_id"
        assert answer["id"] in error["message"]


async def test_an_answer_goes_on_though_it_is_not_kept_itself(through):
    async with api(through) as server:
        first = await server.ask("one")
        second = await server.ask("two", previous_response_id=first["id"], store=False)
        assert second["usage"]["input_tokens"] == 3
        await server.refused("response_not_found", "GET", f"/{second['id']}", 404)


async def test_an_item_stands_for_what_it_refers_to(through):
    async with api(through) as server:
        first = await server.ask("one")
        reference = {"type": "item_reference", "id": first["output"][0]["id"]}
        asked = [{"role": "user", "content": "zero"}, reference, {"role": "user", "content": "two"}]
        second = await server.ask(asked)
        assert await input_texts(server, second["id"]) == ["zero", "one", "two"]

        third = await server.ask([reference], previous_response_id=second["id"])
        assert await input_texts(server, third["id"]) == ["zero", "one", "two", "two"]

        wrong = {"model": "m", "input": [{"id": "msg_nobody_0"}]}
        error = await server.refused("invalid_value", "POST", "", 400, json=wrong)
        assert error["param"] == "input[0].id"


async def test_pages_of_input(through):
    async with api(through) as server:
        asked = [{"role": "user", "content": str(number)} for number in range(5)]
        where = f"/{(await server.ask(asked))['id']}/input_items"

        async def page(query: str) -> tuple[list[str], bool]:
            said = await server.call("GET", where + query)
            assert said["object"] == "list"
            ids = [item["id"] for item in said["data"]]
            assert (said["first_id"], said["last_id"]) == ((ids or [None])[0], (ids or [None])[-1])
            return [item["content"][0]["text"] for item in said["data"]], said["has_more"]

        assert await page("") == (["4", "3", "2", "1", "0"], False)
        assert await page("?limit=2") == (["4", "3"], True)
        assert await page("?order=asc&limit=5") == (["0", "1", "2", "3", "4"], False)
        everything = (await server.call("GET", where))["data"]
        assert everything[0].keys() == {"id", "type", "role", "content"}
        after = everything[2]["id"]
        assert await page(f"?after={after}") == (["1", "0"], False)
        assert await page(f"?after={everything[-1]['id']}") == ([], False)
        for wrong in (
            "limit=0",
            "limit=101",
            "limit=x",
            "limit=" + "1" * 5000,
            "order=up",
            "after=nobody",
        ):
            param = wrong.partition("=")[0]
            error = await server.refused("invalid_value", "GET", f"{where}?{wrong}", 400)
            assert error["param"] == param


async def test_kept_answers_survive_a_restart(through, tmp_path):
    limits = RepliesSection(path=tmp_path / "replies.db")
    async with api(through, limits) as server:
        first = await server.ask("one", stream=True)
    async with api(through, limits) as server:
        assert await server.call("GET", f"/{first['id']}") == first
        second = await server.ask("two", previous_response_id=first["id"])
        assert second["usage"]["input_tokens"] == 3


async def test_kept_answers_survive_a_gateway_that_is_killed(tmp_path):
    speaks = {"openai-chat": OpenAIChat(), "openai-responses": DIALECT}
    async with FakeNeuron(["m"], dialects=speaks) as node:
        text = '[gateway]\nmetrics_listen = "127.0.0.1:0"\n[replies]\npath = "kept.db"\n'
        text += f'[[neurons]]\nname = "n"\nendpoint = "{node.endpoint}"\n'
        (tmp_path / "models.toml").write_text("")
        async with program(tmp_path, text, "serve") as served:
            first = await Api(served.url, served.client, None).ask("one")
            again = await Api(served.url, served.client, None).call("GET", f"/{first['id']}")
            assert again == first
            served.process.kill()
        async with program(tmp_path, text, "serve") as served:
            api = Api(served.url, served.client, None)
            assert await api.call("GET", f"/{first['id']}") == first
            await api.ask("two", previous_response_id=first["id"])

    assert len(json.loads(node.bodies[1])["input"]) == 3


async def test_a_neuron_behind_a_gateway_keeps_nothing(tmp_path):
    limits = RepliesSection(path=tmp_path / "neuron.db")
    async with serving(replies=limits) as node:
        await node.load("m")
        async with running(node.url) as gateway:
            server = Api(gateway.url, gateway.client, node.neuron)
            first = await server.ask("one")
            second = await server.ask("two", previous_response_id=first["id"])
            assert second["usage"]["input_tokens"] == 3
        assert not limits.path.exists()
        alone = Api(node.url, node.client, node.neuron)
        await alone.refused("response_not_found", "GET", f"/{first['id']}", 404)


async def test_keeping_may_be_off(through):
    async with api(through, RepliesSection(max_count=0)) as server:
        answer = await server.ask("one")
        await server.refused("response_not_found", "GET", f"/{answer['id']}", 404)
        more = {"model": "m", "input": "two", "previous_response_id": answer["id"]}
        await server.refused("previous_response_not_found", "POST", "", 400, json=more)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_over_the_limit_is_not_kept(through, stream, monkeypatch, caplog):
    monkeypatch.setattr(replies_module, "MAX_REPLY_BYTES", 1000)
    async with api(through) as server:
        answer = await server.ask("one " * 300, stream=stream)
        assert answer["status"] == "completed"
        await server.refused("response_not_found", "GET", f"/{answer['id']}", 404)
        assert "too large to be kept" in caplog.text


async def test_a_cut_answer_is_kept_and_gone_on_from(through):
    async with api(through) as server:
        first = await server.ask("one two three", max_output_tokens=1)
        assert (first["status"], first["incomplete_details"]["reason"]) == (
            "incomplete",
            "max_output_tokens",
        )
        second = await server.ask("four", previous_response_id=first["id"])
        assert second["usage"]["input_tokens"] == 5


@asynccontextmanager
async def in_front_of(server: FakeNeuron, *dialects: str):
    """Run a gateway whose only node is a server that knows nothing of ours."""
    entry = UpstreamEntry(name="up", endpoint=server.endpoint, dialects=dialects, models=("m",))
    async with running(models=[], upstreams=[entry]) as gateway:
        yield Api(gateway.url, gateway.client, None)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_conversation_goes_on_at_a_server_that_speaks_only_chat(stream):
    async with FakeNeuron(["m"]) as server, in_front_of(server, "openai-chat") as api:
        first = await api.ask("one", stream=stream)
        reference = {"type": "item_reference", "id": first["output"][0]["id"]}
        second = await api.ask("two", stream=stream, previous_response_id=first["id"])
        third = await api.ask([reference])

        assert [turn["role"] for turn in json.loads(server.bodies[1])["messages"]] == [
            "user",
            "assistant",
            "user",
        ]
        assert second["previous_response_id"] == first["id"]
        assert json.loads(server.bodies[2])["messages"][0]["role"] == "assistant"
        assert await api.call("GET", f"/{third['id']}") == third


async def test_a_server_that_speaks_responses_is_not_told_of_answers_it_does_not_have():
    speaks = {"openai-responses": DIALECT}
    async with FakeNeuron(["m"], dialects=speaks) as server:
        async with in_front_of(server, *speaks) as api:
            first = await api.ask("one")
            await api.ask("two", previous_response_id=first["id"])

    body = json.loads(server.bodies[1])
    assert "previous_response_id" not in body
    assert [item["role"] for item in body["input"]] == ["user", "assistant", "user"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_that_speaks_only_responses_answers_clients_of_chat(stream):
    speaks = {"openai-responses": DIALECT}
    async with FakeNeuron(["m"], dialects=speaks) as server:
        async with in_front_of(server, *speaks) as api:
            messages = [{"role": "user", "content": "hi"}]
            body = {"model": "m", "messages": messages, "stream": stream}
            url = f"{api.url}/v1/chat/completions"
            async with api.client.post(url, json=body) as answer:
                said = await answer.read()
    if stream:
        assert said.endswith(b"data: [DONE]\n\n")
        assert said.count(b'"content":" t') == 2
    else:
        message = json.loads(said)["choices"][0]["message"]
        assert message["content"] == "one two three"
    asked = json.loads(server.bodies[0])
    assert (asked["store"], asked["stream"]) == (False, True)


async def test_an_answer_that_broke_off_is_not_kept(caplog):
    speaks = {"openai-responses": DIALECT}
    async with FakeNeuron(["m"], dialects=speaks) as node, running(node) as gateway:
        node.ending = "midway"
        body = {"model": "m", "input": "hi", "stream": True}
        async with gateway.client.post(f"{gateway.url}/v1/responses", json=body) as answer:
            said = await answer.read()
            reply_id = "resp_" + answer.headers["x-request-id"]
        assert json.loads(said.rpartition(b"\ndata: ")[2])["type"] == "response.failed"
        api = Api(gateway.url, gateway.client, None)
        await api.refused("response_not_found", "GET", f"/{reply_id}", 404)


async def test_an_answer_is_there_for_nobody_but_whose_it_is():
    keys = tuple(Key(name=name, sha256=digest(name)) for name in ("zed", "amy"))
    async with (
        FakeNeuron(["m"], dialects={"openai-responses": DIALECT}) as node,
        running(node, auth=AuthSection(keys=keys)) as gateway,
    ):
        server = Api(gateway.url, gateway.client, node)
        zed, amy = {"x-api-key": "zed"}, {"x-api-key": "amy"}
        body = {"model": "m", "input": "one"}
        kept = f"/{(await server.call('POST', '', headers=zed, json=body))['id']}"
        for other in (amy, {}, {"x-cortex-principal": "zed"}):
            for method, path in (("GET", kept), ("GET", f"{kept}/input_items"), ("DELETE", kept)):
                await server.refused("response_not_found", method, path, 404, headers=other)
            going_on = {**body, "previous_response_id": kept[1:]}
            code = "previous_response_not_found"
            await server.refused(code, "POST", "", 400, headers=other, json=going_on)
        await server.call("GET", kept, headers=zed)
        await server.call("POST", "", headers=zed, json={**going_on, "store": False})
        assert await server.call("DELETE", kept, headers=zed)


async def test_other_dialects_keep_nothing(through, monkeypatch):
    def record(*_):
        raise AssertionError("a chat completion is kept")

    monkeypatch.setattr(OpenAIResponses, "record", record)
    monkeypatch.setattr(OpenAIResponses, "ties", record)
    async with api(through) as server:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        async with server.client.post(f"{server.url}/v1/chat/completions", json=body) as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    "stream",
    [
        b"event: e\ndata: %b\n\n",
        b"data: %b\n\ndata: [DONE]\n\n",
        b"data:%b\n\n",
        b"event: e\r\ndata: %b\r\n\r\n: over\r\n\r\ndata: [DONE]\r\n\r\n",
    ],
)
def test_the_end_of_a_stream_is_found_however_a_server_writes_it(stream):
    said = {"id": "resp_1", "status": "completed", "output": [], "x": "\ndata: {}"}
    whole = json.dumps({"type": "response.completed", "response": said}).encode()
    began = b'data: {"type":"response.created","response":{}}\n\n'
    reply_id, kept = DIALECT.record(b'{"model":"m","input":"hi"}', began + stream % whole)

    assert (reply_id, json.loads(DIALECT.render_reply(kept, {}))) == ("resp_1", said)


@pytest.mark.parametrize("stream", [b'data: {"type":"error"}\n\n', b": nothing\n\n"])
def test_a_stream_without_a_response_at_its_end_is_not_kept(stream):
    assert DIALECT.record(b'{"model":"m","input":"hi"}', stream) is None


def test_a_failed_answer_is_not_kept():
    failed = {"id": "resp_1", "status": "failed", "output": []}
    event = {"type": "response.failed", "response": failed}
    reply = b"event: response.failed\ndata: " + json.dumps(event).encode() + b"\n\n"
    assert DIALECT.record(b'{"model":"m","input":"hi"}', reply) is None


def test_a_request_without_what_it_needs_is_refused():
    body = b'{"model":"m","input":[{"type":"item_reference","id":"rs_r1_0"}]}'
    assert DIALECT.ties(body).replies == ("resp_r1",)
    with pytest.raises(InvalidRequest):
        DIALECT.join(body, {})
    with pytest.raises(PreviousReplyNotFound):
        DIALECT.join(b'{"model":"m","input":"hi","previous_response_id":"resp_r1"}', {})
