"""A node dies in the middle of a stream and another goes on: the client sees a pause, no more."""

from __future__ import annotations

import asyncio
import json

import anthropic
import openai
import pytest

from cortex.config.schema import UpstreamEntry
from cortex.dialects.anthropic_messages import AnthropicMessages
from cortex.dialects.openai_chat import OpenAIChat
from cortex.dialects.openai_responses import OpenAIResponses
from cortex.errors import InvalidRequest
from cortex.gateway import hold, relay
from cortex.gateway.kept import BLOCK_BYTES, MAX_BYTES, Kept
from cortex.testing import FakeNeuron, until
from tests.gateway.running import Wire, chat, running

DIALECTS = {
    "openai-chat": OpenAIChat(),
    "anthropic-messages": AnthropicMessages(),
    "openai-responses": OpenAIResponses(),
}
HI = [{"role": "user", "content": "hi"}]
ASKED = {
    "chat": ("/v1/chat/completions", {"messages": HI, "stream_options": {"include_usage": True}}),
    "counting chat": (
        "/v1/chat/completions",
        {
            "messages": HI,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        },
    ),
    "messages": ("/v1/messages", {"messages": HI, "max_tokens": 100}),
    "messages, thoughts withheld": (
        "/v1/messages",
        {
            "messages": HI,
            "max_tokens": 100,
            "thinking": {"type": "adaptive", "display": "omitted"},
        },
    ),
    "responses": ("/v1/responses", {"input": "hi", "include": ["reasoning.encrypted_content"]}),
}


def neurons(count=2):
    """Return neurons that think two tokens and say three; the first is asked first."""
    nodes = [FakeNeuron(["m"], dialects=DIALECTS) for _ in range(count)]
    for node in nodes:
        node.thought = "let me"
    return nodes


def dies(node, after=None):
    node.ending, node.breaks_after = "midway", after


async def stream(gateway, asked="chat", status=200, **more):
    path, body = ASKED[asked]
    said = {"model": "m", "stream": True, **body, **more}
    url, headers = gateway.url + path, {"x-request-id": "r1"}
    async with gateway.client.post(url, json=said, headers=headers) as response:
        assert response.status == status, await response.read()
        return await response.read()


@pytest.mark.parametrize("asked", ASKED)
async def test_a_stream_that_another_node_ends_is_the_one_that_never_broke(asked):
    one, two = neurons()
    async with one, two, running(one, two) as gateway:
        whole = await stream(gateway, asked)
        assert two.counts["chat"] == 0
        for after in (None, 0, 1, 2, 3, 4):
            dies(one, after)
            resumed = await stream(gateway, asked)
            if asked.endswith("withheld") and after in (1, 2):  # nobody has seen it
                assert resumed != whole
                assert b"died while it answered" in resumed
            else:
                assert resumed == whole, after
        records = gateway.records
        assert records[-1].node == "node1"
        assert [record.resumed for record in records[1:3]] == [True, True]
        assert {record.completion_tokens for record in records if record.outcome == "ok"} == {5}
        assert gateway.counted("cortex_resumes_total", node="node1", model="m") == sum(
            record.resumed for record in records
        )
        assert gateway.in_flight() == 0


async def test_sdks_see_one_answer():
    one, two = neurons()
    dies(one, 3)
    async with one, two, running(one, two) as gateway:
        more = {"api_key": "none", "max_retries": 0}
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", **more) as ai:
            chunks = await ai.chat.completions.create(messages=HI, model="m", stream=True)
            said = [chunk.choices[0] async for chunk in chunks]
            assert "".join(c.delta.content or "" for c in said) == "one two three"
            assert [c.finish_reason for c in said if c.finish_reason] == ["stop"]
            async with ai.responses.stream(input="hi", model="m") as events:
                response = await events.get_final_response()
            assert (response.output_text, response.usage.output_tokens) == ("one two three", 5)
        async with (
            anthropic.AsyncAnthropic(base_url=gateway.url, **more) as claude,
            claude.messages.stream(messages=HI, model="m", max_tokens=9) as events,
        ):
            message = await events.get_final_message()
            assert [block.type for block in message.content] == ["thinking", "text"]
            assert (message.content[1].text, message.usage.output_tokens) == ("one two three", 5)
        assert two.counts["chat"] == 3


def broke(body):
    """Tell whether a stream ended with the error event, and not as if it were whole."""
    return b"died while it answered" in body and b"[DONE]" not in body


async def test_a_second_death_is_told():
    one, two, three = neurons(3)
    dies(one, 2)
    dies(two, 1)
    async with one, two, three, running(one, two, three) as gateway:
        body = await stream(gateway)
        assert broke(body)
        assert b"node node1 died" in body
        assert three.counts["chat"] == 0


async def test_a_death_in_a_call_is_told():
    one, two = neurons()
    one.calls = two.calls = ("clock",)
    async with one, two, running(one, two) as gateway:
        for after in (5, 6):
            dies(one, after)
            body = await stream(gateway)
            assert broke(body) is (after == 6), body
        assert two.counts["chat"] == 1


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2},
        {"seed": 1},
        {"logprobs": True},
        {"response_format": {"type": "json_object"}},
        {"messages": [*HI, {"role": "assistant", "content": "so"}]},
    ],
)
async def test_what_another_node_would_not_say_the_same_way_is_not_asked_of_it(more):
    one, two = neurons()
    dies(one, 2)
    async with one, two, running(one, two) as gateway:
        assert broke(await stream(gateway, **more))
        assert two.counts["chat"] == 0


async def test_it_can_be_switched_off():
    one, two = neurons()
    dies(one, 2)
    async with one, two, running(one, two, resume=False) as gateway:
        assert broke(await stream(gateway))
        assert two.counts["chat"] == 0


async def test_nobody_else_has_the_model_and_nothing_is_loaded_for_it():
    one, two = FakeNeuron(["m"]), FakeNeuron(["other"])
    dies(one, 2)
    async with one, two, FakeNeuron(["m"]) as three:
        upstream = UpstreamEntry(name="up", endpoint=three.endpoint)
        async with running(one, two, upstreams=[upstream]) as gateway:
            assert broke(await stream(gateway))
        assert three.counts["chat"] == two.counts["load"] == 0


async def test_a_node_that_refuses_to_go_on_leaves_it_at_the_error():
    one, two = neurons()
    dies(one, 2)
    two.refusal = InvalidRequest("not with me")
    async with one, two, running(one, two) as gateway:
        body = await stream(gateway)
        assert broke(body)
        assert b"node node0 died" in body
        assert b"not with me" not in body
        assert [(r.outcome, r.node, r.resumed) for r in gateway.records] == [
            ("error", "node0", False)
        ]


async def test_the_pause_is_filled_with_keep_alives(monkeypatch):
    monkeypatch.setattr(hold, "KEEP_ALIVE_S", 0.05)
    one, two = neurons()
    dies(one, 3)
    two.ending = "late"
    async with one, two, running(one, two) as gateway, await Wire.to(gateway.address) as client:
        client.post(chat("m", stream=True))
        await client.head()
        beats = await client.until(b'"delta":{}')
        two.may_answer.set()
        said = beats + await client.until(b"\r\n0\r\n\r\n")
        assert said.count(b'"content":""') == 1  # one role
        for word in (b'"one"', b'" two"', b'" three"'):
            assert said.count(word) == 1
        assert said.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_a_node_that_stalls_is_left_for_another(monkeypatch):
    monkeypatch.setattr(relay, "STALL_S", 0.2)
    one, two = neurons()
    one.ending, one.breaks_after = "stall", 2
    async with one, two, running(one, two) as gateway:
        body = await stream(gateway)
        assert not broke(body)
        assert [event for event in map(text_of, events_of(body)) if event] == [
            *("one", " two", " three")
        ]


def events_of(body):
    said = (line.removeprefix(b"data: ") for line in body.split(b"\n\n"))
    return [json.loads(data) for data in said if data.startswith(b"{")]


def text_of(event):
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])


async def test_many_streams_of_a_node_that_stops_all_go_on():
    one, two = neurons()
    one.token_s = 0.02
    one.answer = two.answer = " ".join(map(str, range(50)))
    async with one, two, running(one, two, strategy="round-robin") as gateway:
        asking = [asyncio.create_task(stream(gateway)) for _ in range(20)]
        await until(lambda: one.in_flight["m"] == two.in_flight["m"] == len(asking) // 2)
        await one.stop()
        for body in await asyncio.gather(*asking):
            assert "".join(map(text_of, events_of(body))) == one.answer
        assert sum(record.resumed for record in gateway.records) == len(asking) // 2


def test_what_is_kept_comes_back_whole_unless_it_is_too_much():
    kept = Kept()
    assert kept.whole() == b""
    pieces = [b'data: {"n": %d}\n\n' % n for n in range(3 * BLOCK_BYTES // 10)]
    for piece in pieces:
        kept.feed(piece)
    assert kept.whole() == b"".join(pieces)
    for size in (BLOCK_BYTES, 8 * BLOCK_BYTES):  # one read may bring many blocks at once
        for _ in range(2 * MAX_BYTES // size):
            kept.feed(b"x" * size)
        assert kept.whole() is None
        kept = Kept()
