"""What a client sees is what the neuron sent, and a broken answer never looks whole."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from aiohttp.test_utils import make_mocked_request

from cortex.errors import DeviceUnavailable, InsufficientVram, RemoteError
from cortex.fleet.model import ModelSpec
from cortex.gateway import asking, poller, relay
from cortex.gateway.relay import Exchange
from cortex.testing import FakeNeuron, until
from tests.gateway.running import Wire, chat, running

CLOSE = b"close the connection"
BODY = b'{"text": "\xe2\x82\xac and a \\u20ac, not touched"}'


class RawNeuron:
    """A neuron that has model m, and answers chats with bytes we chose."""

    def __init__(self, fake: FakeNeuron) -> None:
        self.fake = fake
        self.answers: list[list[bytes]] = []
        self.opened = 0
        self.requests: list[bytes] = []
        self.endpoint = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                self.requests.append(head + await reader.readexactly(length))
                for piece in self.answers.pop(0):
                    if piece is CLOSE:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.002)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def raw(*answers: list[bytes]) -> AsyncIterator[tuple[RawNeuron, FakeNeuron]]:
    """Yield a neuron whose API is a fake's, and whose inference is raw: one port before both."""
    async with FakeNeuron(["m"]) as fake:
        neuron = RawNeuron(fake)
        neuron.answers = list(answers)
        host, port = fake.endpoint.removeprefix("http://").split(":")

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            first = await reader.read(5)
            if first == b"POST ":
                reader._buffer[:0] = first
                return await neuron.serve(reader, writer)
            up_reader, up_writer = await asyncio.open_connection(host, int(port))
            up_writer.write(first)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(pump(reader, up_writer))
                    both.create_task(pump(up_reader, writer))
            finally:
                up_writer.close()
                writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        neuron.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield neuron, fake


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


def sized(body: bytes, extra: bytes = b"") -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n%b"
        % (
            extra,
            len(body),
            body,
        )
    )


def chunked(*chunks: bytes, kind: bytes = b"text/event-stream") -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % kind
    return head + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"


def cut(data: bytes, every: int) -> list[bytes]:
    return [data[at : at + every] for at in range(0, len(data), every)]


LETTERS = random.Random(0).randbytes(1024).hex()
EVENTS_64K = b"".join(  # as hard to keep small as those of a model that says anything at all
    b'data: {"id":"chatcmpl-0","choices":[{"index":0,"delta":{"content":"%b"}}]%b}\n\n'
    % (LETTERS[at : at + 8].encode(), b" " * 174)
    for at in range(0, len(LETTERS), 8)
)


class Flood:
    """Answers every request with a stream of *size* bytes, as fast as they are taken."""

    def __init__(self, size: int) -> None:
        self.size, self.sent = size, 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % self.size)
        try:
            for _ in range(0, self.size, 1 << 16):
                writer.write(EVENTS_64K)
                await writer.drain()
                self.sent += 1 << 16
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def stopped(self) -> int:
        """Return what was sent once nothing moves any more."""
        before = -1
        while before != self.sent:
            before = self.sent
            await asyncio.sleep(0.1)
        return before


INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nRetry-After: 9\r\n\r\n"
EVENTS = b'data: {"a": "\xe2\x82\xac"}\n\n', b": a comment\n\n", b"data: [DONE]\n\n"


@pytest.mark.parametrize("every", [1, 7, 4096])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (sized(BODY), BODY),
        (chunked(*EVENTS), b"".join(EVENTS)),
        (INTERIM + sized(BODY), BODY),
        (INTERIM + chunked(*EVENTS), b"".join(EVENTS)),
    ],
    ids=["content-length", "chunked", "content-length after 1xx", "chunked after 1xx"],
)
async def test_a_body_arrives_byte_for_byte_wherever_it_is_cut(every, answer, expected):
    async with raw(cut(answer, every)) as (node, _), running(node) as gateway:
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m"))
            status, headers = await client.head()
            assert (status, headers.get("retry-after")) == (200, None)
            if "content-length" in headers:
                assert await client.exactly(int(headers["content-length"])) == expected
            else:
                assert await client.chunks() == expected


async def test_a_body_that_ends_with_its_connection_is_whole():
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + BODY
    async with raw([answer, CLOSE]) as (node, _), running(node) as gateway:
        node.close_after = True
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m"))
            await client.head()
            assert await client.chunks() == BODY
        await until(lambda: gateway.records)
        assert gateway.records[0].outcome == "ok"


@pytest.mark.parametrize(
    "extra", [b"junk", sized(b"{}")], ids=["junk", "a second answer nobody asked for"]
)
async def test_what_a_neuron_sends_after_its_answer_reaches_nobody(extra):
    async with raw([sized(BODY) + extra], [sized(b'{"n": 2}')]) as (node, _):
        async with running(node) as gateway, await Wire.to(gateway.address) as client:
            for expected in (BODY, b'{"n": 2}'):
                client.post(chat("m"))
                _, headers = await client.head()
                assert await client.exactly(int(headers["content-length"])) == expected
            await until(lambda: len(gateway.records) == 2)
            assert [record.outcome for record in gateway.records] == ["ok", "ok"]
            assert node.opened == 2  # such a connection is not used again


async def test_a_neurons_connection_is_used_again():
    async with raw([sized(BODY)], [sized(BODY)], [chunked(*EVENTS)]) as (node, _):
        async with running(node) as gateway:
            for _ in range(3):
                await gateway.stream()
            assert node.opened == 1


@pytest.mark.parametrize("last_words", [b"", b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nX-"])
async def test_a_kept_connection_the_neuron_has_closed_goes_unnoticed(last_words):
    async with raw([sized(BODY)], [last_words, CLOSE], [sized(BODY)]) as (node, _):
        async with running(node) as gateway, await Wire.to(gateway.address) as client:
            for _ in range(2):
                client.post(chat("m"))
                status, headers = await client.head()
                assert (status, headers["content-type"]) == (200, "application/json")
                assert headers["x-cortex-route"] == "loaded"
                assert await client.exactly(len(BODY)) == BODY
            assert node.opened == 2


async def test_a_neuron_that_took_a_request_and_died_does_not_get_it_again(monkeypatch):
    monkeypatch.setattr(asking, "STALE_S", 0.0)
    async with raw([sized(BODY)], [CLOSE]) as (node, _), FakeNeuron(["m"]) as other:
        async with running(node, other) as gateway:
            await gateway.stream()
            answer = await gateway.ask()

        assert answer["headers"]["x-cortex-node"] == "node1"
        assert len(node.requests) == 2


async def test_an_alias_is_named_beside_the_body_and_every_byte_stays():
    models = [ModelSpec(id="org/real")]
    async with FakeNeuron(["org/real"]) as node:
        async with running(node, models=models, aliases={"nick": "org/real"}) as gateway:
            odd = (
                b'{"messages":[{"role":"user","content":"\\u20ac  x"}],"model":"nick","top_p":0.50}'
            )
            async with await Wire.to(gateway.address) as client:
                client.post(odd)
                status, headers = await client.head()

            assert status == 200
            assert headers["x-cortex-model"] == "org/real"
            assert node.bodies == [odd]
            assert node.headers[0]["x-cortex-model"] == "org/real"


async def test_a_model_may_be_called_in_any_script():
    name = "mod\u00e8le \u6a21\u578b"
    async with FakeNeuron([name]) as node:
        async with running(node, models=[ModelSpec(id=name)]) as gateway:
            answer = await gateway.ask(name)

    assert node.headers[0]["x-cortex-model"] == answer["headers"]["x-cortex-model"] == name


async def test_a_body_is_not_touched_at_all():
    body = b' {\n"model" : "m", "messages":[ {"content":"\\u20ac","role":"user"} ]\t}\n'
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        async with await Wire.to(gateway.address) as client:
            client.post(body)
            assert (await client.head())[0] == 200
        assert node.bodies == [body]


async def test_what_is_not_the_neurons_business_is_not_sent_to_it():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        async with await Wire.to(gateway.address) as client:
            private = "Authorization: Bearer secret\r\nCookie: a=b\r\nX-Cortex-Principal: root\r\n"
            client.post(
                chat("m"), headers=private + "traceparent: 00-1-2-3\r\nX-Request-Id: r1\r\n"
            )
            _, headers = await client.head()

        [sent] = node.headers
        assert {"authorization", "cookie"}.isdisjoint(sent)
        assert sent["x-cortex-principal"] == "anonymous"
        assert (sent["traceparent"], sent["x-request-id"]) == ("00-1-2-3", "r1")
        assert headers["x-request-id"] == "r1"


async def test_a_node_that_dies_before_the_first_byte_is_replaced_once():
    async with FakeNeuron(["m"]) as bad, FakeNeuron(["m"]) as good, running(bad, good) as gateway:
        bad.ending = "silent"

        answer = await gateway.ask()

        assert answer["headers"]["x-cortex-route"] == "retried"
        assert answer["headers"]["x-cortex-node"] == "node1"
        assert (bad.counts["chat"], good.counts["chat"]) == (1, 1)
        assert [record.outcome for record in gateway.records] == ["ok"]
        assert good.counts["load"] == 0


async def test_the_only_node_is_asked_again_when_it_dies_once():
    async with raw([CLOSE], [sized(BODY)]) as (node, fake), running(node) as gateway:
        answer = await gateway.ask()

        assert answer["headers"]["x-cortex-route"] == "retried"
        assert (len(node.requests), fake.counts["load"]) == (2, 0)


async def test_a_node_that_fails_five_times_in_a_row_is_left_alone_for_a_while(monkeypatch):
    monkeypatch.setattr(poller, "POLL_S", 1.0)
    async with FakeNeuron(["m"]) as bad, FakeNeuron(["m"]) as good, running(bad, good) as gateway:
        bad.ending = "silent"
        for _ in range(10):
            await gateway.ask()
        assert bad.counts["chat"] == 5
        bad.ending = "whole"

        await until(lambda: gateway.gateway.nodes.get("node0").serves("m"))
        assert (await gateway.ask())["headers"]["x-cortex-node"] == "node0"


async def test_a_host_that_vanished_is_noticed_by_the_connection_itself():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        await gateway.ask()
        [known] = gateway.gateway.nodes
        [kept] = known.client._idle
        sock = kept.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


async def test_two_nodes_that_die_are_enough():
    nodes = [FakeNeuron(["m"]) for _ in range(3)]
    async with nodes[0], nodes[1], nodes[2], running(*nodes) as gateway:
        for node in nodes:
            node.ending = "silent"

        await gateway.refused(502, "upstream_unreachable")

        assert sum(node.counts["chat"] for node in nodes) == 2


@pytest.mark.parametrize(
    "refusal",
    [
        DeviceUnavailable("no room in the queue", retry_after_s=7),
        RemoteError("overloaded", code="overloaded", status=529),
        InsufficientVram("the device has too little memory for it"),
    ],
    ids=["503", "529", "507"],
)
async def test_a_refusal_goes_to_another_node_that_has_the_model(refusal):
    async with FakeNeuron(["m"]) as bad, FakeNeuron(["m"]) as good, running(bad, good) as gateway:
        bad.refusal = refusal

        answer = await gateway.ask()

        assert answer["headers"]["x-cortex-node"] == "node1"
        assert (bad.counts["chat"], good.counts["chat"]) == (1, 1)


async def test_a_refusal_of_the_only_node_reaches_the_client_and_is_not_hammered():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        node.refusal = DeviceUnavailable("no room in the queue", retry_after_s=7)

        error = await gateway.refused(503, "device_unavailable")

        assert error["message"] == "no room in the queue"
        assert error["headers"]["retry-after"] == "7"
        assert error["headers"]["x-cortex-node"] == "node0"
        assert node.counts["chat"] == 1
        assert [(r.status, r.outcome) for r in gateway.records] == [(503, "error")]


async def test_a_refusal_while_the_model_recovers_is_held_until_it_is_loaded_again():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        node.refusal = DeviceUnavailable("the worker restarts")
        node.becomes("m", "recovering")
        asked = asyncio.create_task(gateway.ask())
        await until(lambda: gateway.waiting == 1)
        node.refusal = None
        node.becomes("m", "loaded")

        answer = await asked

        assert answer["choices"][0]["message"]["content"] == "one two three"
        assert node.counts["load"] == 0


async def test_a_model_that_was_unloaded_behind_our_back_is_loaded_again():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        await gateway.ask()
        del node.models["m"]

        answer = await gateway.ask()

        assert answer["headers"]["x-cortex-route"] in ("retried", "cold-load")
        assert node.counts["load"] == 1


async def test_a_stream_that_breaks_ends_with_an_error_event_and_no_done():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        node.ending = "midway"

        said = await gateway.stream()

        events = [line.removeprefix(b"data: ") for line in said.split(b"\n\n") if line]
        assert json.loads(events[-1])["error"] == {
            "message": "node node0 died while it answered",
            "type": "api_error",
            "code": "upstream_died",
            "param": None,
        }
        assert b"one" in said
        assert b"[DONE]" not in said
        await until(lambda: gateway.records)
        [record] = gateway.records
        assert (record.status, record.outcome) == (200, "error")


async def test_a_body_that_breaks_is_cut_off_and_never_ends_cleanly():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        node.ending = "midway"
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m"))
            _, headers = await client.head()
            rest = await client.rest()

        assert 0 < len(rest) < int(headers["content-length"])
        await until(lambda: gateway.records)
        assert gateway.records[0].outcome == "error"


async def test_a_connection_is_usable_after_a_broken_stream():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        node.ending = "midway"
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m", stream=True))
            await client.head()
            assert b"upstream_died" in await client.chunks()
            node.ending = "whole"
            client.post(chat("m"))
            assert (await client.head())[0] == 200


async def test_an_http_1_0_client_gets_its_stream_and_then_the_end():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m", stream=True), version="1.0")
            status, headers = await client.head()
            said = await client.rest()

        assert status == 200
        assert "transfer-encoding" not in headers
        assert headers["connection"] == "close"
        assert said.endswith(b"data: [DONE]\n\n")


async def test_an_http_1_0_client_of_a_broken_stream_sees_the_error():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        node.ending = "midway"
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m", stream=True), version="1.0")
            await client.head()
            said = await client.rest()

        assert b"upstream_died" in said
        assert b"[DONE]" not in said


async def test_pipelined_requests_are_answered_in_order():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        async with await Wire.to(gateway.address) as client:
            for number in range(3):
                client.post(chat("m"), headers=f"X-Request-Id: r{number}\r\n")
            for number in range(3):
                status, headers = await client.head()
                body = json.loads(await client.exactly(int(headers["content-length"])))
                assert (status, headers["x-request-id"]) == (200, f"r{number}")
                assert body["choices"][0]["message"]["content"] == "one two three"


async def test_a_client_that_wants_its_connection_closed_has_it_closed():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m"), headers="Connection: close\r\n")
            _, headers = await client.head()
            assert headers["connection"] == "close"
            assert len(await client.rest()) == int(headers["content-length"])


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_is_noticed_by_the_neuron(stream):
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        node.answer, node.token_s = "word " * 1000, 0.01
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m", stream=stream))
            await until(lambda: node.in_flight["m"] == 1)
            if stream:
                await client.until(b"word")
        await until(lambda: node.counts["cancelled"] == 1, 2)

        await until(lambda: gateway.records)
        [record] = gateway.records
        assert record.outcome == "cancelled"
        assert record.status == 499
        assert gateway.in_flight() == 0
        assert node.in_flight["m"] == 0


async def test_a_client_that_leaves_a_neuron_that_hangs_is_let_go():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        node.ending = "hang"
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m"))
            await until(lambda: node.in_flight["m"] == 1)
        await until(lambda: node.counts["cancelled"] == 1, 2)
        await until(lambda: gateway.in_flight() == 0 and len(gateway.records) == 1)


async def test_a_slow_reader_pauses_the_neuron_and_nobody_else(monkeypatch):
    monkeypatch.setattr(relay, "STALL_S", 0.05)  # and is not taken for a neuron that hangs
    monkeypatch.setattr(poller, "POLL_S", 0.02)
    flood = Flood(32 << 20)
    async with raw([]) as (node, _):
        node.serve = flood.serve
        async with (
            FakeNeuron(["other"]) as other,
            running(node, other, models=[ModelSpec(id="m"), ModelSpec(id="other")]) as gateway,
            await Wire.to(gateway.address, limit=1 << 12) as slow,
        ):
            slow.post(chat("m"))
            await slow.head()
            assert await flood.stopped() < flood.size // 2

            await gateway.ask("other")

            rest = await slow.exactly(flood.size)
            assert len(rest) == flood.size
            assert flood.sent == flood.size


@pytest.mark.promises
async def test_what_100_slow_readers_do_not_take_waits_elsewhere(promise, monkeypatch):
    waiting: dict[Exchange, int] = {}
    write_out = Exchange._write_out

    def measured(exchange: Exchange) -> None:
        write_out(exchange)
        size = exchange._client.get_write_buffer_size()
        waiting[exchange] = max(size, waiting.get(exchange, 0))

    monkeypatch.setattr(Exchange, "_write_out", measured)
    flood = Flood(8 << 20)
    async with raw([]) as (node, _):
        node.serve = flood.serve
        async with running(node) as gateway, AsyncExitStack() as clients:
            for _ in range(100):
                client = await clients.enter_async_context(await Wire.slow(gateway.address))
                client.post(chat("m", stream=True))
                await client.head()
            await until(lambda: all(exchange._is_paused for exchange in waiting))
            total = await flood.stopped()
            most = max(waiting.values()) >> 10
            pieces = ([*x.kept._pieces, *x.kept._blocks] for x in waiting)
            kept = max(sum(map(len, each)) for each in pieces) >> 10
            promise(13, f"100 slow readers: of each at most {most} KiB unsent, {kept} KiB kept")

            assert len(waiting) == 100
            assert total < 100 * flood.size
            assert most <= 256
            assert kept <= 256


async def test_an_answer_to_a_client_that_is_just_gone_is_dropped_without_a_word(caplog):
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        await gateway.ask()

        async def come_and_go(number: int) -> None:
            async with await Wire.to(gateway.address) as client:
                client.post(chat("m"))
                await asyncio.sleep(number % 20 * 0.0005)

        for _ in range(5):
            await asyncio.gather(*(come_and_go(number) for number in range(60)))

        await until(lambda: node.in_flight.total() + gateway.in_flight() == 0)
        assert [record.getMessage() for record in caplog.records if record.levelno >= 40] == []


class GoneTransport:
    """What uvloop's transport of a client that just left does."""

    def get_extra_info(self, name, default=None):
        return default

    def is_closing(self):
        return True

    def write(self, data):
        raise RuntimeError(f"the handler is closed, and {data!r} cannot be written")


async def test_nothing_is_written_to_a_transport_that_is_closing():
    request = make_mocked_request("POST", "/v1/chat/completions", transport=GoneTransport())
    exchange = Exchange(request, {}, is_last=True)
    exchange.on_body(b"too late")
    exchange.flush()
    exchange.break_off(b"data: {}\n\n")


async def test_a_stream_whose_neuron_hangs_ends_with_an_error(monkeypatch):
    monkeypatch.setattr(relay, "STALL_S", 0.2)
    monkeypatch.setattr(poller, "POLL_S", 0.05)
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        node.answer, node.token_s = "never comes", 60.0
        answer = await asyncio.wait_for(gateway.stream(), 5)
        assert b"upstream_died" in answer
        assert b"[DONE]" not in answer
        await until(lambda: node.counts["cancelled"] == 1 and gateway.in_flight() == 0)
