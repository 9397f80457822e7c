"""A streaming client that waits is told that we are alive, and never sees a second head."""

from __future__ import annotations

import asyncio
import json

import pytest

from cortex.config.schema import UpstreamEntry
from cortex.dialects.anthropic_messages import AnthropicMessages
from cortex.dialects.openai_chat import OpenAIChat
from cortex.dialects.sse import SseReader
from cortex.errors import InvalidRequest, UnsupportedArchitecture
from cortex.gateway import hold, poller
from cortex.testing import FakeNeuron, until
from tests.gateway.running import Wire, chat, running

BOTH = {"openai-chat": OpenAIChat(), "anthropic-messages": AnthropicMessages()}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(hold, "HOLD_S", 0.05)
    monkeypatch.setattr(hold, "KEEP_ALIVE_S", 0.05)
    monkeypatch.setattr(poller, "POLL_S", 0.05)


def events(body: bytes) -> list[dict]:
    said = [data for _, data in SseReader().feed(body)]
    return [json.loads(data) for data in said if data != b"[DONE]"]


def text(body: bytes) -> str:
    choices = [choice for event in events(body) for choice in event.get("choices", ())]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def opened(client: Wire) -> None:
    """Wait for the head and the first keep-alive."""
    status, headers = await client.head()
    assert (status, headers["content-type"]) == (200, "text/event-stream")


async def test_who_waits_for_a_load_gets_keep_alives_and_then_the_answer():
    async with FakeNeuron() as node, running(node) as gateway:
        node.may_load.clear()
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m", stream=True))
            await opened(client)
            beat = await client.until(b"\n\n")
            node.may_load.set()
            rest = await client.chunks_after(beat)

        assert text(rest) == "one two three"
        assert rest.endswith(b"data: [DONE]\n\n")
        assert {event["id"] for event in events(rest)} == {events(rest)[0]["id"]}
        assert [record.outcome for record in gateway.records] == ["ok"]


async def test_a_load_that_fails_while_the_client_waits_is_an_event_of_its_stream():
    async with FakeNeuron() as node, running(node) as gateway:
        node.may_load.clear()
        node.load_error_late = UnsupportedArchitecture("no such thing")
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m", stream=True))
            await opened(client)
            beat = await client.until(b"\n\n")
            node.may_load.set()
            rest = await client.chunks_after(beat)
            assert events(rest)[-1]["error"]["code"] == "load_failed"
            assert b"[DONE]" not in rest

            node.load_error_late = None
            client.post(chat("other"))
            assert (await client.head())[0] == 404  # the connection is as good as new

        first = gateway.records[0]
        assert (first.status, first.outcome) == (503, "error")


async def test_a_refusal_after_the_head_is_an_event():
    async with FakeNeuron() as node, running(node) as gateway:
        node.may_load.clear()
        node.refusal = InvalidRequest("no such field", param="top_p")
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m", stream=True))
            await opened(client)
            beat = await client.until(b"\n\n")
            node.may_load.set()
            rest = await client.chunks_after(beat)

        assert "no such field" in events(rest)[-1]["error"]["message"]
        assert b"[DONE]" not in rest


async def test_a_request_that_does_not_stream_waits_for_its_status():
    async with FakeNeuron() as node, running(node) as gateway:
        node.may_load.clear()
        node.load_error_late = UnsupportedArchitecture("no such thing")
        asked = asyncio.create_task(gateway.refused(503, "load_failed"))
        await until(lambda: gateway.waiting == 1)
        await asyncio.sleep(0.15)
        node.may_load.set()
        await asked


async def test_who_leaves_while_he_waits_is_gone():
    async with FakeNeuron() as node, running(node) as gateway:
        node.may_load.clear()
        client = await Wire.to(gateway.address)
        client.post(chat("m", stream=True))
        await opened(client)
        client.leave()

        await until(lambda: gateway.waiting == 0)
        await until(lambda: [r.outcome for r in gateway.records] == ["cancelled"])
        node.may_load.set()


async def test_an_http_1_0_client_gets_keep_alives_and_the_end_with_the_connection():
    async with FakeNeuron() as node, running(node) as gateway:
        node.may_load.clear()
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m", stream=True), version="1.0")
            await opened(client)
            beat = await client.until(b"\n\n")
            node.may_load.set()
            rest = beat + await client.rest()

        assert text(rest) == "one two three"


async def test_a_silent_upstream_is_covered_for_and_its_answer_translated():
    async with FakeNeuron(["m"]) as server:
        server.ending = "late"
        entry = UpstreamEntry(name="up", endpoint=server.endpoint, dialects=("openai-chat",))
        async with running(models=[], upstreams=[entry]) as gateway:
            body = {
                "model": "m",
                "max_tokens": 9,
                "stream": True,
                "messages": [{"role": "user", "content": "hi"}],
            }
            async with gateway.client.post(f"{gateway.url}/v1/messages", json=body) as response:
                assert response.status == 200
                first = await response.content.readuntil(b"\n\n")
                server.may_answer.set()
                rest = await response.content.read()

    assert b"ping" in first
    kinds = [event["type"] for event in events(rest) if event["type"] != "ping"]
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
