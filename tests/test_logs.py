"""What a program logged is kept in memory, and told as it comes, whatever thread said it."""

from __future__ import annotations

import asyncio
import json
import logging
import threading

import aiohttp
import pytest

from cortex.config.schema import AuthSection, NeuronEntry, UpstreamEntry
from cortex.fleet.principal import Key, digest
from cortex.logs import MAX_KEPT, MAX_MESSAGE_CHARS, Logs, Query
from cortex.testing import FakeNeuron
from tests.gateway.running import bearer, running
from tests.neuron.serving import serving

log = logging.getLogger("cortex.somewhere")


@pytest.fixture(autouse=True)
def everything():
    """Log as a program with --log-level debug."""
    log.setLevel(logging.DEBUG)
    yield
    log.setLevel(logging.NOTSET)


def said(logs: Logs, **query) -> list[str]:
    return [line.message for line in logs.recent(Query(**query)).records]


async def test_lines_are_kept_as_they_were_said():
    logs = Logs()
    async with logs.kept():
        log.warning("model %s: %s", "org/m", "failed")
    log.warning("later")

    [line] = logs.recent(Query()).records
    assert (line.number, line.level, line.logger) == (1, "warning", "cortex.somewhere")
    assert line.message == "model org/m: failed"
    assert line.time > 1_700_000_000


async def test_an_exception_is_kept_with_where_it_came_from():
    logs = Logs()
    async with logs.kept():
        log.error("it broke", exc_info=RuntimeError("boom"))
    [message] = said(logs)
    assert message == "it broke\nRuntimeError: boom"


async def test_what_is_asked_for_is_what_comes():
    logs = Logs()
    async with logs.kept():
        for level, message in ((10, "a"), (20, "org/m"), (25, "odd"), (40, "c"), (50, "org/m d")):
            log.log(level, message)
    assert said(logs, level="info") == ["org/m", "odd", "c", "org/m d"]
    assert said(logs, level="error") == ["c", "org/m d"]
    assert said(logs, model="org/m") == ["org/m", "org/m d"]
    assert said(logs, lines=2) == ["c", "org/m d"]
    assert said(logs, lines=0) == []


async def test_only_the_last_lines_are_kept_and_no_line_is_endless():
    logs = Logs()
    async with logs.kept():
        for number in range(MAX_KEPT + 5):
            log.info("%s", number)
        log.info("x" * 2 * MAX_MESSAGE_CHARS)
    kept = said(logs, lines=MAX_KEPT)
    assert (len(kept), kept[0], len(kept[-1])) == (MAX_KEPT, "6", MAX_MESSAGE_CHARS)


async def events(response):
    """Yield the events of a stream, keep-alives left out."""
    async for raw in response.content:
        line = raw.decode().rstrip()
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


async def test_a_gateway_tells_its_log_and_goes_on_telling_from_any_thread():
    logs = Logs()
    async with logs.kept(), running(logs=logs) as gateway:
        log.info("before")
        records = (await gateway.get("/api/v1/logs?level=info"))["records"]
        assert "before" in [record["message"] for record in records]

        url = f"{gateway.url}/api/v1/logs?follow=1&level=warning"
        async with gateway.client.get(url) as response:
            heard = events(response)
            name, data = await anext(heard)
            assert (name, data) == ("snapshot", {"records": []})
            log.info("too quiet")
            thread = threading.Thread(target=log.error, args=("from a thread",))
            thread.start()
            name, data = await anext(heard)
            thread.join()
            assert (name, data["message"], data["level"]) == ("log", "from a thread", "error")


async def test_a_neurons_log_is_asked_for_through_the_gateway():
    logs = Logs()
    async with logs.kept(), serving(logs=logs, token="t") as node:
        entry = NeuronEntry(name="beast", endpoint=node.url, token="t")
        async with running(entry) as gateway:
            log.warning("on the node")
            path = "/api/v1/logs?node=beast&level=warning"
            assert (await gateway.get(path))["records"][-1]["message"] == "on the node"

            async with gateway.client.get(f"{gateway.url}{path}&follow=1") as response:
                assert response.content_type == "text/event-stream"
                heard = events(response)
                _, snapshot = await anext(heard)
                assert snapshot["records"][-1]["message"] == "on the node"
                log.error("as it comes")
                assert (await anext(heard))[1]["message"] == "as it comes"


async def test_a_neuron_wants_its_token_for_its_log():
    async with serving(token="t") as node:
        wrong = {"Authorization": "Bearer wrong"}
        async with node.client.get(f"{node.url}/logs", headers=wrong) as response:
            assert response.status == 401


async def test_a_gateways_log_is_an_admins():
    auth = AuthSection(keys=(Key(name="a", sha256=digest("a")),))
    async with running(auth=auth) as gateway:
        for key, status in ((None, 401), ("a", 403)):
            url = f"{gateway.url}/api/v1/logs"
            async with gateway.client.get(url, headers=bearer(key)) as response:
                assert response.status == status


async def refused(gateway, query: str) -> dict:
    async with gateway.client.get(f"{gateway.url}/api/v1/logs?{query}") as response:
        return {"status": response.status, **(await response.json())["error"]}


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("level=loud", "level"),
        ("lines=-1", "lines"),
        ("lines=" + "1" * 5000, "lines"),
        ("follow=yes", "follow"),
    ],
)
async def test_what_cannot_be_asked_for_is_refused(query, param):
    async with running() as gateway:
        error = await refused(gateway, query)
        assert (error["status"], error["param"]) == (400, param)


async def test_a_node_without_a_log_to_ask_for_is_told():
    async with FakeNeuron() as old:
        upstream = UpstreamEntry(name="other", endpoint="http://127.0.0.1:9")
        async with running(old, upstreams=[upstream]) as gateway:
            for name, said in (
                ("node0", "node0 keeps no log to ask for"),
                ("other", "other is no neuron: its log is its own"),
                ("nodo0", "no node is called 'nodo0'"),
            ):
                for more in ("", "&follow=1"):
                    error = await refused(gateway, f"node={name}{more}")
                    assert error["status"] == 404
                    assert error["message"].startswith(said)


async def breaking(reader, writer) -> None:
    """Answer as a neuron that dies while it is listened to."""
    head = await reader.readuntil(b"\r\n\r\n")
    if head.startswith(b"GET /logs"):
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\n: hello\n\r\n")
        await writer.drain()
    writer.close()


async def test_a_node_that_dies_ends_the_stream_with_why():
    async with await asyncio.start_server(breaking, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with running(f"http://127.0.0.1:{port}") as gateway:
            url = f"{gateway.url}/api/v1/logs?node=node0&follow=1"
            async with gateway.client.get(url) as response:
                [(name, data)] = [event async for event in events(response)]
    assert name == "gone"
    assert "does not answer" in data["reason"]


async def test_a_gateway_that_stops_lets_its_listeners_go():
    logs = Logs()
    async with serving(logs=logs) as node, running(node.url) as gateway:
        url = f"{gateway.url}/api/v1/logs?follow=1"
        there = gateway.client.get(f"{url}&node=node0")
        async with gateway.client.get(url) as own, there as other:
            for response in (own, other):
                assert (await anext(events(response)))[0] == "snapshot"

            await gateway.gateway.drain(1)

            assert (await own.content.read()).strip() == b""
            with pytest.raises(aiohttp.ClientPayloadError):
                await other.content.read()
