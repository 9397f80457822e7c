"""What the gateway counts adds up, and what it shows of the fleet is how the fleet is."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.request
from time import perf_counter

import pytest

from cortex.chat.events import Started, TextDelta
from cortex.config.schema import Address, PluginSettings
from cortex.errors import ConfigError, RepoFetchFailed
from cortex.fleet.model import ModelSpec, RequestRecord
from cortex.gateway import loop_delay
from cortex.gateway.metrics import GatewayMetrics
from cortex.gateway.metrics_server import MetricsServer
from cortex.plugins import Plugins
from cortex.testing import FakeNeuron, until
from tests.gateway.running import Wire, chat, counted, running

DIALECTS = {
    offer.name: offer.build()
    for offer in Plugins(PluginSettings(only=frozenset())).offers("dialect")
}
HI = [{"role": "user", "content": "hi"}]
STREAMS = {
    "openai-chat": ("/v1/chat/completions", {"messages": HI}),
    "openai-completions": ("/v1/completions", {"prompt": "hi"}),
    "openai-responses": ("/v1/responses", {"input": "hi", "store": False}),
    "anthropic-messages": ("/v1/messages", {"messages": HI, "max_tokens": 9}),
}
OUTCOMES = ("ok", "error", "cancelled")


class Stuck(FakeNeuron):
    """A neuron that says its answer and then nothing more, not even that it is over."""

    async def _events(self, _chat):
        yield Started(prompt_tokens=7)
        for word in self.answer.split():
            yield TextDelta(word)
        await asyncio.Event().wait()


async def leave_after(gateway, word: bytes) -> None:
    """Ask for a stream, and leave once *word* has come."""
    async with await Wire.to(gateway.address) as client:
        client.post(chat("m", stream=True))
        await client.until(word)


def tokens_of(transcript: bytes) -> int:
    """Return how many tokens of text a stream brought."""
    events = [line[6:] for line in transcript.split(b"\n") if line.startswith(b"data: {")]
    chunks = [json.loads(event) for event in events]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk.get("choices")]
    return sum(bool(delta.get("content")) for delta in deltas)


@pytest.mark.promises
async def test_requests_are_the_sum_of_how_they_ended_and_tokens_those_of_the_transcripts(promise):
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        node.answer, seen = "a b c d e", 0
        for transcript in await asyncio.gather(*(gateway.stream() for _ in range(20))):
            seen += tokens_of(transcript)
        for answer in await asyncio.gather(*(gateway.ask() for _ in range(20))):
            seen += len(answer["choices"][0]["message"]["content"].split())
        node.ending = "midway"
        for transcript in await asyncio.gather(*(gateway.stream() for _ in range(10))):
            assert b"[DONE]" not in transcript
            seen += tokens_of(transcript)
        node.ending = "hang"
        for _ in range(5):
            async with await Wire.to(gateway.address) as client:
                client.post(chat("m"))
                await until(lambda: node.in_flight["m"] == 1)
            await until(lambda: node.in_flight["m"] == 0)
        await gateway.refused(404, "model_not_found", model="nobody")

        await until(lambda: len(gateway.records) == 56)
        count = gateway.counted
        ended = {outcome: count("cortex_requests_total", outcome=outcome) for outcome in OUTCOMES}
        tokens = count("cortex_completion_tokens_total")
        told = f"{tokens:g} tokens counted, {seen} in the transcripts"
        promise(19, f"{count('cortex_requests_total'):g} requests counted, ended {ended}; {told}")
        assert ended == {"ok": 40, "error": 11, "cancelled": 5}
        assert count("cortex_requests_total") == 56
        assert count("cortex_request_duration_seconds_count") == 56
        assert count("cortex_request_errors_total") == 11
        assert count("cortex_request_errors_total", status="200") == 10
        assert count("cortex_request_cancels_total", phase="sent") == 5
        assert tokens == seen == 50 * 5
        assert count("cortex_prompt_tokens_total") == 40 * 7
        assert sum(record.completion_tokens for record in gateway.records) == seen


@pytest.mark.parametrize("dialect", STREAMS)
async def test_of_an_answer_that_breaks_off_the_tokens_that_came_are_counted(dialect):
    path, body = STREAMS[dialect]
    node = FakeNeuron(["m"], dialects={dialect: DIALECTS[dialect]})
    node.answer, node.ending = "a b c d", "midway"
    async with node, running(node) as gateway:
        url = gateway.url + path
        async with gateway.client.post(url, json={"model": "m", "stream": True, **body}) as answer:
            assert answer.status == 200
            await answer.read()
        await until(lambda: gateway.records)
        assert gateway.records[0].outcome == "error"
        assert gateway.counted("cortex_completion_tokens_total") == 4


async def test_of_a_translated_answer_that_breaks_off_the_tokens_that_came_are_counted():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        node.ending, (path, body) = "midway", STREAMS["anthropic-messages"]
        url = gateway.url + path
        async with gateway.client.post(url, json={"model": "m", "stream": True, **body}) as answer:
            await answer.read()
        await until(lambda: gateway.records)
        assert gateway.counted("cortex_completion_tokens_total") == 3


async def test_of_a_stream_whose_client_leaves_the_tokens_that_came_are_counted():
    async with Stuck(["m"]) as node, running(node) as gateway:
        node.answer = "one two three"
        await leave_after(gateway, b"three")
        await until(lambda: gateway.records)

        [record] = gateway.records
        assert (record.outcome, record.completion_tokens) == ("cancelled", 3)
        assert gateway.counted("cortex_completion_tokens_total") == 3
        assert gateway.counted("cortex_request_cancels_total", phase="answering") == 1
        assert gateway.counted("cortex_time_to_first_token_seconds_count") == 1


async def test_who_leaves_a_queue_is_counted_as_queued_with_what_it_waited():
    async with FakeNeuron() as node, running(node) as gateway:
        node.may_load.clear()
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m"))
            await until(lambda: gateway.waiting == 1)
            assert gateway.counted("cortex_model_queue_depth", model="m", node="") == 1
        await until(lambda: gateway.records)
        node.may_load.set()

        assert gateway.counted("cortex_request_cancels_total", phase="queued", node="") == 1
        assert gateway.counted("cortex_queue_wait_seconds_count", model="m") == 1
        assert gateway.counted("cortex_queue_wait_seconds_sum") == gateway.records[0].queued_s > 0


async def test_a_retry_is_counted_at_the_node_it_left_and_its_tokens_once():
    async with FakeNeuron(["m"]) as bad, FakeNeuron(["m"]) as good:
        async with running(bad, good, strategy="round-robin") as gateway:
            bad.ending = "silent"
            await asyncio.gather(*(gateway.stream() for _ in range(2)))

            await until(lambda: len(gateway.records) == 2)
            assert gateway.counted("cortex_retries_total", model="m", node="node0") == 1
            assert gateway.counted("cortex_retries_total") == 1
            assert gateway.counted("cortex_requests_total", node="node1", outcome="ok") == 2
            assert gateway.counted("cortex_completion_tokens_total", node="node1") == 2 * 3
            assert sorted(r.retried for r in gateway.records) == [(), ("node0",)]


async def test_cached_tokens_are_recorded_and_counted():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        node.cached_tokens = 5
        await gateway.ask()
        await gateway.stream()

        await until(lambda: len(gateway.records) == 2)
        assert [record.cached_tokens for record in gateway.records] == [5, 5]
        assert gateway.counted("cortex_cached_prompt_tokens_total", model="m", node="node0") == 10
        assert gateway.counted("cortex_prompt_tokens_total") == 14


async def test_tokens_that_were_only_counted_are_not_counted():
    node = FakeNeuron(["m"], dialects=DIALECTS)
    async with node, running(node) as gateway:
        body = {"model": "m", "messages": HI, "max_tokens": 1}
        async with gateway.client.post(
            f"{gateway.url}/v1/messages/count_tokens", json=body
        ) as answer:
            assert (await answer.json())["input_tokens"] == 1
        await until(lambda: gateway.records)
        assert gateway.counted("cortex_requests_total", outcome="ok") == 1
        assert gateway.counted("cortex_prompt_tokens_total") == 0


async def test_loads_are_timed_and_those_that_fail_counted():
    models = [ModelSpec(id="m"), ModelSpec(id="bad")]
    async with FakeNeuron() as node, running(node, models=models) as gateway:
        await gateway.ask("m")
        node.load_error = RepoFetchFailed("no such repository")
        await gateway.refused(503, "load_failed", model="bad")

        assert gateway.counted("cortex_load_seconds_count", model="m", node="node0") == 1
        assert gateway.counted("cortex_load_seconds_sum") > 0
        assert gateway.counted("cortex_load_failures_total", model="bad", node="node0") == 1
        assert gateway.counted("cortex_cold_starts_total") == 1


async def test_the_fleet_is_shown_as_it_is_and_a_node_out_of_service_only_as_such():
    async with Stuck(["m"], sizes={"m": 4000}, devices=2) as node, running(node) as gateway:
        count = gateway.counted
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m", stream=True))
            await client.until(b"three")
            assert count("cortex_model_in_flight", model="m", node="node0") == 1
        assert count("cortex_node_up", node="node0") == 1
        assert count("cortex_model_loaded", model="m", node="node0") == 1
        assert count("cortex_model_vram_used_mb", model="m", node="node0") == 4000
        assert count("cortex_device_vram_used_mb", node="node0", device="0") == 4000
        assert count("cortex_device_vram_free_mb", node="node0", device="1") == 24_000
        assert count("cortex_device_ok", node="node0") == 2
        node.becomes("m", "recovering")
        await until(lambda: count("cortex_model_loaded") == 0)
        assert count("cortex_ejections_total", node="node0") == 0

        await node.stop()
        await until(lambda: count("cortex_node_up", node="node0") == 0)
        assert count("cortex_ejections_total", node="node0") == 1
        assert count("cortex_device_ok") == count("cortex_model_vram_used_mb") == 0
        await until(lambda: count("cortex_model_in_flight") == 0)


async def test_a_loop_that_was_kept_busy_is_told_late(monkeypatch):
    monkeypatch.setattr(loop_delay, "EVERY_S", 0.01)
    told = []
    async with asyncio.TaskGroup() as tasks:
        measuring = tasks.create_task(loop_delay.measure_forever(told.append))
        await until(lambda: told)
        busy_until = perf_counter() + 0.1
        while perf_counter() < busy_until:
            pass
        seen = len(told)
        await until(lambda: len(told) > seen)
        measuring.cancel()
    assert max(told) > 0.05


@pytest.mark.promises
async def test_health_and_metrics_answer_while_the_loop_does_not(promise):
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        await gateway.ask()
        server = MetricsServer(gateway.gateway.metrics.registry, Address("127.0.0.1", 0))
        try:
            # This blocks the loop: whatever answers is not on it.
            said = {}
            for path in ("/metrics", "/healthz"):
                began = perf_counter()
                said[path] = urllib.request.urlopen(
                    f"http://{server.address}{path}", timeout=20
                ).read()
            took_ms = 1e3 * (perf_counter() - began)
        finally:
            server.close()
    promise(11, f"/healthz in {took_ms:.1f} ms while the loop is blocked")
    assert said["/healthz"] == b"ok\n"
    assert b'cortex_node_up{node="node0"} 1.0' in said["/metrics"]
    assert b"cortex_build_info{" in said["/metrics"]


def test_a_hundred_requests_of_as_many_clients_make_no_more_series_than_one():
    metrics = GatewayMetrics()
    series = set()
    for number in range(100):
        metrics.count(
            RequestRecord(
                id=f"req-{number}",
                model="m",
                node="n",
                dialect="openai-chat",
                principal=f"key-{number}",
                status=200,
                outcome="ok",
                stream=True,
                ttft_s=0.1,
                decode_s=0.5,
                duration_s=0.6 + number,
                prompt_tokens=number,
                completion_tokens=number,
            )
        )
        found = {(s.name, *s.labels.items()) for m in metrics.registry.collect() for s in m.samples}
        assert number == 0 or found == series
        series = found
    assert counted(metrics.registry, "cortex_requests_total") == 100


def test_metrics_are_served_by_ipv6_as_well():
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError as error:
            pytest.skip(f"this host has no IPv6: {error}")
    server = MetricsServer(GatewayMetrics().registry, Address("::1", 0))
    try:
        with urllib.request.urlopen(f"http://{server.address}/healthz", timeout=10) as answer:
            assert answer.read() == b"ok\n"
        with pytest.raises(ConfigError, match="cannot listen on"):
            MetricsServer(GatewayMetrics().registry, server.address)
    finally:
        server.close()
