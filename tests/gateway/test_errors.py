"""What a client did wrong, said in words it can act on; nothing is a 500."""

from __future__ import annotations

import gzip
import json

import pytest

from cortex.fleet.model import ModelSpec
from cortex.testing import FakeNeuron, until
from tests.gateway.running import Wire, chat, running

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
BOMB = b'{"model": "m", "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"


@pytest.mark.parametrize(
    ("body", "status", "code", "param", "message"),
    [
        (b"", 400, "invalid_json", None, "the body is not valid JSON: "),
        (b"{", 400, "invalid_json", None, "the body is not valid JSON: "),
        (b'{"model": "\xff"}', 400, "invalid_json", None, "the body is not valid JSON: "),
        (b"[]", 400, "invalid_value", None, "the body: expected object, got array"),
        (BOMB, 400, "invalid_json", None, "the body is nested too deeply"),
        (b"{}", 400, "missing_required_parameter", "model", "model is required"),
        (b'{"model": 1}', 400, "invalid_value", "model", "model: expected str, got int"),
        (
            b'{"model": ""}',
            *(400, "invalid_value", "model", "model: expected str of length >= 1"),
        ),
        (
            b'{"model": "m", "stream": "yes"}',
            *(400, "invalid_value", "stream", "stream: expected bool | null, got str"),
        ),
        (
            b'{"model": "Qwen3-8b"}',
            *(404, "model_not_found", "model"),
            "no model is called 'Qwen3-8b' (did you mean 'Qwen3-8B'?)",
        ),
        (
            b'{"model": "\\ud800"}',
            *(400, "invalid_json", None, "the body is not valid JSON: "),
        ),
    ],
    ids=lambda value: repr(value)[:24],
)
async def test_a_bad_request_is_refused_with_the_field(body, status, code, param, message):
    models = [ModelSpec(id="m"), ModelSpec(id="Qwen3-8B")]
    async with FakeNeuron(["m"]) as node, running(node, models=models) as gateway:
        async with gateway.client.post(f"{gateway.url}/v1/chat/completions", data=body) as response:
            answer = await response.json()

        assert response.status == status
        error = answer["error"]
        assert error["message"].startswith(message)
        assert (error["type"], error["code"], error["param"]) == (
            "invalid_request_error",
            code,
            param,
        )
        assert response.headers["x-request-id"] == gateway.records[0].id
        assert node.counts["chat"] == 0
        [record] = gateway.records
        assert (record.status, record.outcome) == (status, "error")


@pytest.mark.parametrize("declared", [True, False], ids=["content-length", "chunked"])
async def test_a_body_of_70_mib_is_413_and_counted_as_such(declared):
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        size = 70 << 20
        async with await Wire.to(gateway.address) as client:
            framing = f"Content-Length: {size}" if declared else "Transfer-Encoding: chunked"
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n"
            client.writer.write(head.encode())
            if not declared:
                for _ in range(70):
                    client.writer.write(b"%x\r\n%b\r\n" % (1 << 20, bytes(1 << 20)))
                    await client.writer.drain()
            status, headers = await client.head()
            error = json.loads(await client.exactly(int(headers["content-length"])))["error"]

        assert (status, error["code"]) == (413, "request_too_large")
        assert error["message"] == "the body is over 64 MiB"
        assert [record.status for record in gateway.records] == [413]


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "message"),
    [
        ("GET", "/v1/nothing", 404, "not_found", "no such path: /v1/nothing"),
        (
            *("POST", "/chat/completions", 404, "not_found"),
            "no such path: /chat/completions (did you mean '/v1/chat/completions'?)",
        ),
        (
            *("POST", "/v1/v1/messages", 404, "not_found"),
            "no such path: /v1/v1/messages (did you mean '/v1/messages'?)",
        ),
        ("POST", "/", 405, "method_not_allowed", "/ takes GET, HEAD, not POST"),
        (
            *("GET", "/v1/chat/completions", 405, "method_not_allowed"),
            "/v1/chat/completions takes POST, not GET",
        ),
        (
            *("GET", "/v1/models/mm", 404, "model_not_found"),
            "no model is called 'mm' (did you mean 'm'?)",
        ),
        (
            *("POST", "/api/v1/models/n/load", 404, "model_not_found"),
            "no model is called 'n' (known: m)",
        ),
        (
            *("POST", "/api/v1/models/m/unload", 404, "model_not_found"),
            "model 'm' is not loaded on any node",
        ),
    ],
)
async def test_a_wrong_path_or_method_is_json_too(method, path, status, code, message):
    async with FakeNeuron() as node, running(node) as gateway:
        async with gateway.client.request(method, gateway.url + path) as response:
            answer = await response.json()

        assert (response.status, answer["error"]["code"]) == (status, code)
        assert answer["error"]["message"] == message
        if status == 405:
            assert (
                response.headers["allow"].replace(",", ", ")
                == message.split(" takes ")[1].split(", not")[0]
            )


async def test_a_node_that_is_not_there_cannot_be_loaded_on():
    async with FakeNeuron() as node, running(node) as gateway:
        answer = await gateway.post("/api/v1/models/m/load", 404, node="nod0")

        assert answer["error"]["message"] == "no node is called 'nod0' (did you mean 'node0'?)"


async def test_a_body_that_is_not_packed_as_it_says_is_400():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m"), headers="Content-Encoding: gzip\r\n")
            status, headers = await client.head()
            error = json.loads(await client.exactly(int(headers["content-length"])))["error"]

        assert (status, error["code"]) == (400, "invalid_value")
        assert [record.status for record in gateway.records] == [400]


async def test_a_packed_body_is_unpacked_and_a_bomb_is_413():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        for size, expected in ((10, 200), (70 << 20, 413)):
            body = gzip.compress(chat("m", user="x" * size), 1)
            async with await Wire.to(gateway.address) as client:
                client.post(body, headers="Content-Encoding: gzip\r\n")
                assert (await client.head())[0] == expected
        assert json.loads(node.bodies[0])["user"] == "x" * 10


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"\x16\x03\x01 this is no HTTP\r\n\r\n", "the request is no valid HTTP: Received HTTPS"),
        (
            POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
            "the request is no valid HTTP: Transfer-Encoding can't be present with Content-Length",
        ),
        (
            POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            "the request is no valid HTTP: Invalid character in chunk size",
        ),
        (
            POST + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}",
            "the body is packed in a way that is not known here (send it as it is,",
        ),
    ],
)
async def test_a_request_that_is_no_http_is_refused_and_the_log_stays_empty(sent, message, caplog):
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        async with await Wire.to(gateway.address) as client:
            client.writer.write(sent)
            status, headers = await client.head()
            error = json.loads(await client.rest())["error"]

        assert (status, headers["content-type"]) == (400, "application/json")
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_value")
        assert error["message"].startswith(message)
        await gateway.ask()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("known", ["\u00e9\u65e5", "tab\tin it"])
async def test_an_id_that_is_no_plain_text_is_replaced(known):
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m"), headers=f"x-request-id: {known}\r\n")
            status, headers = await client.head()

        assert (status, len(headers["x-request-id"])) == (200, 32)
        shown = await gateway.get("/api/v1/requests")
        assert [row["id"] for row in shown["requests"]] == [headers["x-request-id"]]


async def test_an_id_that_is_no_utf_8_is_replaced():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        async with await Wire.to(gateway.address) as client:
            client.writer.write(POST + b"x-request-id: \xff\r\nContent-Length: 2\r\n\r\n{}")
            assert (await client.head())[0] == 400

        (row,) = (await gateway.get("/api/v1/requests"))["requests"]
        assert row["id"].isalnum()


async def test_a_strategy_that_raises_is_named_and_recorded_once(caplog):
    class Broken:
        def choose(self, *_):
            raise RuntimeError("boom")

    async with FakeNeuron(["m"]) as a, FakeNeuron(["m"]) as b, running(a, b) as gateway:
        gateway.gateway._router._strategy = Broken()

        error = await gateway.refused(500, "plugin")

        assert error["message"].startswith("routing strategy tests.gateway.test_errors.")
        assert ".Broken failed: RuntimeError: boom (the log has" in error["message"]
        assert caplog.records[-1].exc_info, "the traceback is where it says"
        assert [(r.status, r.outcome) for r in gateway.records] == [(500, "error")]


async def test_an_error_after_the_answer_began_closes_the_connection_and_appends_nothing():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        node.ending = "midway"
        for dialect in gateway.gateway._dialects.values():
            dialect.render_stream_error = lambda _: 1 / 0
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m", stream=True))
            await client.head()
            rest = await client.rest()

        assert b"HTTP/1.1" not in rest
        assert b"internal error" not in rest
        assert not rest.endswith(b"0\r\n\r\n")
        await until(lambda: gateway.records)
        assert len(gateway.records) == 1
