"""Every request is recorded and counted exactly once, whatever became of it."""

from __future__ import annotations

import asyncio
from time import monotonic, perf_counter
from types import SimpleNamespace
from typing import cast

import pytest

import cortex
from cortex.chat.events import Usage
from cortex.errors import DeviceUnavailable, RepoFetchFailed
from cortex.fleet.model import ModelSpec
from cortex.fleet.principal import Principal
from cortex.gateway.recording import Recording
from cortex.gateway.relay import Exchange
from cortex.testing import FakeNeuron, until
from tests.gateway.running import Wire, chat, running


async def test_a_stream_is_recorded_with_its_tokens_and_times():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        node.answer, node.token_s = "a b c d", 0.02
        await gateway.stream()

        await until(lambda: gateway.records)
        [record] = gateway.records
        assert (record.model, record.node, record.dialect) == ("m", "node0", "openai-chat")
        assert (record.status, record.outcome) == (200, "ok")
        assert (record.prompt_tokens, record.completion_tokens) == (7, 4)
        assert 0 < record.ttft_s < record.duration_s
        assert record.duration_s >= 0.08


async def test_who_leaves_at_the_last_event_is_recorded_as_answered_with_its_tokens():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        node.answer = "a b c d"
        for _ in range(20):
            async with await Wire.to(gateway.address) as client:
                client.post(chat("m", stream=True))
                await client.until(b"data: [DONE]\n\n")

        await until(lambda: len(gateway.records) == 20)
        said = {(record.outcome, record.completion_tokens) for record in gateway.records}
        assert said == {("ok", 4)}


async def test_counters_add_up():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        for _ in range(3):
            await gateway.ask()
        await gateway.stream()
        await gateway.refused(404, "model_not_found", model="nobody")
        node.refusal = DeviceUnavailable("no")
        await gateway.refused(503, "device_unavailable")

        await until(lambda: len(gateway.records) == 6)
        count = gateway.counted
        assert count("cortex_requests_total") == 6
        assert count("cortex_requests_total", outcome="ok", model="m") == 4
        assert count("cortex_request_errors_total", status="404", model="") == 1
        assert count("cortex_request_errors_total", status="503", node="node0") == 1
        assert count("cortex_completion_tokens_total") == 4 * 3
        assert count("cortex_prompt_tokens_total") == 4 * 7
        assert count("cortex_time_to_first_token_seconds_count") == 1  # streams have one
        assert count("cortex_request_duration_seconds_count") == 6
        assert count("cortex_queue_wait_seconds_count") == 5
        assert len({record.id for record in gateway.records}) == 6


async def test_cold_starts_and_evictions_are_counted():
    models = [ModelSpec(id="a", vram_mb=20_000), ModelSpec(id="b", vram_mb=20_000)]
    sizes = {"a": 20_000, "b": 20_000}
    async with FakeNeuron(sizes=sizes) as node, running(node, models=models) as gateway:
        for model in "abab":
            await gateway.ask(model)

        assert gateway.counted("cortex_cold_starts_total") == 4
        assert gateway.counted("cortex_evictions_total", model="a", node="node0") == 2
        assert gateway.counted("cortex_evictions_total") == 3


async def test_who_leaves_while_a_load_is_awaited_is_recorded_as_cancelled():
    async with FakeNeuron() as node, running(node) as gateway:
        node.may_load.clear()
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m"))
            await until(lambda: gateway.waiting == 1)
        await until(lambda: gateway.records)

        [record] = gateway.records
        assert (record.status, record.outcome, record.node) == (499, "cancelled", "")
        assert (record.ttft_s, gateway.waiting, gateway.in_flight()) == (None, 0, 0)
        node.may_load.set()


async def test_who_leaves_while_sending_a_body_is_recorded_once():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        async with await Wire.to(gateway.address) as client:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
            client.writer.write(head + b'{"model":')
            await client.writer.drain()
            await asyncio.sleep(0.05)
        await until(lambda: gateway.records)
        assert [record.outcome for record in gateway.records] == ["cancelled"]


async def test_a_failed_load_is_recorded_once_for_each_who_asked():
    async with FakeNeuron() as node, running(node) as gateway:
        node.load_error = RepoFetchFailed("no such repository")
        await asyncio.gather(*(gateway.refused(503, "load_failed") for _ in range(5)))

        await until(lambda: len(gateway.records) == 5)
        assert {(r.status, r.outcome) for r in gateway.records} == {(503, "error")}


async def test_a_plugin_that_raises_takes_nothing_from_the_answer():
    class Bad:
        @cortex.hookimpl
        def cortex_on_request_finished(self):
            raise SystemExit("I stop everything")

    async with FakeNeuron(["m"]) as node, running(node, plugins=[Bad()]) as gateway:
        await gateway.ask()
        await gateway.ask()

        assert len(gateway.records) == 2


async def test_nodes_and_models_that_change_are_told():
    seen = []

    class Watcher:
        @cortex.hookimpl
        def cortex_on_node_changed(self, node, healthy):
            seen.append((node, healthy))

        @cortex.hookimpl
        def cortex_on_model_changed(self, node, model):
            seen.append((node, model.id, model.status))

    async with FakeNeuron(["m"]) as node, running(node, plugins=[Watcher()]) as gateway:
        node.becomes("m", "recovering")
        await until(lambda: ("node0", "m", "recovering") in seen)
        await node.stop()
        await until(lambda: ("node0", False) in seen)
        await node.start()
        await until(lambda: seen[-1] == ("node0", True))
        assert seen == [
            ("node0", "m", "loaded"),
            ("node0", True),
            ("node0", "m", "recovering"),
            ("node0", False),
            ("node0", True),
        ]
        assert gateway.records == []


async def test_a_node_that_is_busy_is_not_ejected():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        node.ending = "hang"
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m"))
            await until(lambda: node.in_flight["m"] == 1)
            polled = monotonic()
            await until(lambda: monotonic() > polled + 0.5)
            assert all(known.healthy for known in gateway.gateway.nodes)


def test_a_keep_alive_is_no_first_token():
    began = perf_counter() - 30
    usage = Usage(completion_tokens=5, queue_ms=1000, prefill_ms=20_000)
    exchange = SimpleNamespace(first_byte_s=began + 5, status=200, usage=lambda: usage)
    principal = Principal(name="zed")
    recording = Recording(
        id="1", dialect="d", operation="chat", principal=principal, began=began, stream=True
    )
    recording.exchange, recording.queued_s = cast("Exchange", exchange), 2.0

    record = recording.close()

    assert record.ttft_s == 23
    assert record.decode_s == pytest.approx(7, abs=1)
