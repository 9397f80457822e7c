"""Clients that are slow, or never say what they want, cost little and nobody else."""

from __future__ import annotations

import asyncio
import json

import pytest

from cortex import connection, web
from cortex.config.schema import Address
from cortex.gateway import metrics_server
from cortex.gateway.metrics import GatewayMetrics
from cortex.gateway.metrics_server import MetricsServer
from cortex.testing import FakeNeuron, until
from tests.gateway.running import Wire, chat, running

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"


async def answered_408(client: Wire) -> str:
    """Read a 408 and the end of the connection; return the error's message."""
    status, headers = await client.head()
    assert (status, headers["connection"]) == (408, "close")
    error = json.loads(await client.rest())["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "request_timeout")
    return error["message"]


@pytest.mark.parametrize("sends", ["nothing", "half a head", "a byte now and then"])
async def test_a_head_that_does_not_come_is_408(monkeypatch, sends):
    monkeypatch.setattr(connection, "HEAD_S", 0.3)
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        async with await Wire.to(gateway.address) as client:
            if sends != "nothing":
                client.writer.write(HEAD)
            reading = asyncio.create_task(answered_408(client))
            while sends == "a byte now and then" and not reading.done():
                client.writer.write(b"X")
                await asyncio.wait([reading], timeout=0.05)
            assert "did not come within 0.3 s" in await reading
        assert gateway.records == []
        await gateway.ask()


async def test_a_connection_in_use_is_held_to_that_at_its_next_head_and_not_while_idle(monkeypatch):
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        node.answer, node.token_s = "word " * 10, 0.05
        async with await Wire.to(gateway.address) as client:
            for _ in range(2):
                client.post(chat("m", stream=True))
                assert (await client.head())[0] == 200
                monkeypatch.setattr(connection, "HEAD_S", 0.3)  # the answer takes longer
                assert (await client.chunks()).endswith(b"[DONE]\n\n")
                await asyncio.sleep(0.4)
            client.writer.write(HEAD)
            assert "head" in await answered_408(client)


@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"])
async def test_a_body_of_which_no_more_comes_is_408(monkeypatch, framing):
    monkeypatch.setattr(web, "BODY_IDLE_S", 0.2)
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        async with await Wire.to(gateway.address) as client:
            client.writer.write(HEAD + framing.encode() + b"\r\n\r\n")
            status, headers = await client.head()
            error = json.loads(await client.exactly(int(headers["content-length"])))["error"]
            assert (status, error["code"]) == (408, "request_timeout")
        await until(lambda: gateway.records)
        [record] = gateway.records
        assert (record.status, record.outcome) == (408, "error")


async def test_a_thread_of_the_metrics_does_not_wait_for_ever(monkeypatch, capfd):
    monkeypatch.setattr(metrics_server._Quiet, "timeout", 0.2)
    server = MetricsServer(GatewayMetrics().registry, Address("127.0.0.1", 0))
    try:
        async with await Wire.to(server.address) as client:
            client.writer.write(b"GET /healthz")
            assert await client.rest() == b""
    finally:
        await asyncio.to_thread(server.close)
    assert capfd.readouterr().err == ""
