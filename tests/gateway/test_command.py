"""``cortex serve`` as a program: it starts, says why it cannot, and stops in order."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from time import perf_counter

import pytest

from cortex.chat.events import TextDelta
from cortex.testing import FakeNeuron, until
from tests.gateway.running import Wire, chat
from tests.neuron.serving import program

HERE = '[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\n'


def config(folder, *nodes: FakeNeuron, more: str = "") -> str:
    (folder / "models.toml").write_text('[[models]]\nid = "m"\n')
    entries = (
        f'[[neurons]]\nname = "n{number}"\nendpoint = "{node.endpoint}"\n'
        for number, node in enumerate(nodes)
    )
    return HERE + more + "".join(entries)


async def test_it_serves_and_shows_its_metrics(tmp_path):
    async with FakeNeuron() as node, program(tmp_path, config(tmp_path, node), "serve") as gateway:
        line = (await gateway.process.stdout.readline()).decode()
        metrics = line.removeprefix("metrics on ").strip()
        body = json.loads(chat("m"))
        answer = await gateway.post("/v1/chat/completions", **body)
        assert answer["choices"][0]["message"]["content"] == "one two three"
        assert (await gateway.get("/health"))["status"] == "ok"

        async with gateway.client.get(metrics) as response:
            said = await response.text()
        assert (
            'cortex_requests_total{dialect="openai-chat",model="m",node="n0",outcome="ok"} 1.0'
            in said
        )
        assert 'cortex_cold_starts_total{model="m",node="n0"} 1.0' in said
        assert 'cortex_completion_tokens_total{model="m",node="n0"} 3.0' in said
        async with gateway.client.get(metrics.replace("/metrics", "/healthz")) as response:
            assert (response.status, await response.text()) == (200, "ok\n")
        async with gateway.client.get(metrics.replace("/metrics", "/x")) as response:
            assert response.status == 404


async def test_it_starts_without_its_neurons_and_soon(tmp_path):
    async with FakeNeuron() as node:
        pass
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        text = config(tmp_path, node)
        text += (
            f'[[neurons]]\nname = "x"\nendpoint = "http://127.0.0.1:{silent.getsockname()[1]}"\n'
        )
        async with program(tmp_path, text, "serve") as gateway:
            health = await gateway.get("/health")

    assert health == {
        "status": "impaired",
        "nodes": {"healthy": 0, "total": 2},
        "unservable": [],
    }


async def test_sigterm_lets_running_streams_end_and_exits_0(tmp_path):
    async with FakeNeuron(["m"]) as node:
        node.answer, node.token_s = "word " * 20, 0.05
        async with program(tmp_path, config(tmp_path, node), "serve") as gateway:
            async with gateway.streaming("m", "hi") as stream:
                await stream.content.readuntil(b"word")
                gateway.process.terminate()
                said = await stream.read()
            async with asyncio.timeout(5):
                assert await gateway.process.wait() == 0

    assert said.endswith(b"data: [DONE]\n\n")


class Patient(FakeNeuron):
    """A neuron whose answers go on from their first word once they may."""

    async def _events(self, chat):
        async for event in super()._events(chat):
            yield event
            if isinstance(event, TextDelta):
                await self.may_answer.wait()


@pytest.mark.promises
async def test_a_drain_drops_none_of_500_streams(promise, tmp_path):
    async with (
        Patient(["m"]) as node,
        program(tmp_path, config(tmp_path, node), "serve") as gateway,
    ):
        async with AsyncExitStack() as clients:
            streams = []
            for _ in range(500):
                client = await clients.enter_async_context(await Wire.to(gateway.address))
                client.post(chat("m", stream=True))
                streams.append(client)
            for client in streams:
                await client.until(b"one")
            gateway.process.terminate()
            while (await gateway.get("/health"))["status"] != "draining":
                await asyncio.sleep(0.01)
            node.may_answer.set()
            whole = 0
            for client in streams:
                with suppress(asyncio.IncompleteReadError):
                    whole += b"three" in await client.until(b"data: [DONE]\n\n")
        async with asyncio.timeout(10):
            assert await gateway.process.wait() == 0
    promise(15, f"drain: {500 - whole} of 500 running streams dropped")

    assert whole == 500


async def test_a_drain_refuses_what_is_new_and_what_waits_and_says_so(tmp_path):
    slow = FakeNeuron(["m"])
    slow.answer, slow.token_s, slow.max_in_flight = "word " * 40, 0.05, 1
    async with slow as node, program(tmp_path, config(tmp_path, node), "serve") as gateway:
        url, waiting = f"{gateway.url}/v1/chat/completions", []
        async with gateway.streaming("m", "hi") as stream:
            await stream.content.readuntil(b"word")
            waiting = [
                asyncio.create_task(gateway.client.post(url, data=chat("m"))) for _ in range(3)
            ]
            while len((await gateway.get("/api/v1/requests"))["requests"]) < 4:
                await asyncio.sleep(0.01)
            gateway.process.terminate()

            for answer in await asyncio.gather(*waiting):
                assert answer.status == 503
                assert answer.headers["Retry-After"] == "5"
                assert (await answer.json())["error"]["code"] == "shutting_down"
            assert (await gateway.get("/health"))["status"] == "draining"
            async with gateway.client.post(url, data=chat("m")) as late:
                assert late.status == 503
                assert (await late.json())["error"]["code"] == "shutting_down"
            assert (await stream.read()).endswith(b"data: [DONE]\n\n")
        async with asyncio.timeout(5):
            assert await gateway.process.wait() == 0


@pytest.mark.parametrize("how", ["late", "told twice"])
async def test_what_outlasts_a_drain_ends_with_an_error_event(tmp_path, how):
    drain_s = 0.3 if how == "late" else 60
    async with FakeNeuron(["m"]) as node:
        node.answer, node.token_s = "word " * 1000, 0.05
        text = config(tmp_path, node, more=f"drain_s = {drain_s}\n")
        async with program(tmp_path, text, "serve") as gateway:
            async with gateway.streaming("m", "hi") as stream:
                await stream.content.readuntil(b"word")
                gateway.process.terminate()
                if how == "told twice":
                    while (await gateway.get("/health"))["status"] != "draining":
                        await asyncio.sleep(0.01)
                    gateway.process.terminate()
                async with asyncio.timeout(5):
                    said = await stream.read()
            async with asyncio.timeout(5):
                assert await gateway.process.wait() == 0

    assert b"shutting_down" in said
    assert b"[DONE]" not in said


async def test_sigterm_while_a_load_goes_on_exits_soon(tmp_path):
    async with FakeNeuron() as node:
        node.may_load.clear()
        async with program(tmp_path, config(tmp_path, node), "serve") as gateway:
            async with await Wire.to(gateway.address) as client:
                client.post(chat("m"))
                await until(lambda: node.counts["load"] == 1)
            gateway.process.terminate()
            async with asyncio.timeout(5):
                assert await gateway.process.wait() == 0


@pytest.mark.promises
async def test_clients_that_mean_ill_take_little_memory(promise, tmp_path):
    bomb = b'{"model": "m", "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
    giant = head + b"Content-Length: %d\r\n\r\n" % (1 << 40) + bytes(1 << 16)
    async with (
        FakeNeuron(["m"]) as node,
        program(tmp_path, config(tmp_path, node), "serve") as gateway,
    ):
        await gateway.chat("m")
        own = Path(f"/proc/{gateway.process.pid}")
        (own / "clear_refs").write_text("5")  # what was the most is forgotten
        before = memory_kib(own, "VmRSS")
        async with AsyncExitStack() as clients:
            for _ in range(100):
                slow = await clients.enter_async_context(await Wire.to(gateway.address))
                slow.writer.write(head)
            for data, status in [(giant, 413), (b"", 400)] * 20:
                async with await Wire.to(gateway.address) as client:
                    client.writer.write(data) if data else client.post(bomb)
                    assert (await client.head())[0] == status
            more_mib = (memory_kib(own, "VmHWM") - before) / 1024
    promise(
        14, f"100 slow heads, 20 bodies of 1 TiB, 20 JSON bombs: {more_mib:.1f} MiB more memory"
    )

    assert more_mib <= 5


def memory_kib(process: Path, name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+)", (process / "status").read_text())[1])


@pytest.mark.promises
async def test_a_gateway_that_was_killed_finds_everything_again_and_loads_nothing(
    promise, tmp_path
):
    async with FakeNeuron() as node:
        text = config(tmp_path, node)
        for how in ("cold-load", "loaded"):
            began = perf_counter()
            async with program(tmp_path, text, "serve") as gateway:
                body = chat("m")
                url = f"{gateway.url}/v1/chat/completions"
                async with gateway.client.post(url, data=body) as response:
                    assert response.headers["x-cortex-route"] == how
                took_s = perf_counter() - began
                gateway.process.kill()
    loads = node.counts["load"] - 1
    promise(17, f"killed: answers {took_s:.2f} s after its next start, {loads} models loaded again")

    assert node.counts["load"] == 1


@pytest.mark.parametrize("option", ["--listen", "--metrics-listen"])
async def test_a_port_in_use_exits_2_with_one_sentence(tmp_path, option):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(AssertionError) as caught:
            async with program(tmp_path, config(tmp_path), "serve", option, address):
                pass

    [said] = [line for line in str(caught.value).split("\n") if line.startswith("cortex serve")]
    assert said.lower().startswith(f"cortex serve: cannot listen on {address}: address already in")
    assert "Traceback" not in str(caught.value)


async def test_a_second_gateway_with_the_same_state_file_exits_2_and_names_it(tmp_path):
    text = config(tmp_path, more='state_path = "here.json"\n')
    async with program(tmp_path, text, "serve") as first:
        with pytest.raises(AssertionError) as caught:
            async with program(tmp_path, text, "serve"):
                pass
        said = f"serve.toml: gateway.state_path: {tmp_path}/here.json is in use by another gateway"
        by = f"process {first.process.pid} on {socket.gethostname()}"
        assert f"cortex serve: {said}, {by} (stop it" in str(caught.value)
        assert "Traceback" not in str(caught.value)
        first.process.kill()  # it leaves its lock file behind

    assert (tmp_path / "here.lock").exists()
    async with program(tmp_path, text, "serve"):
        pass


async def test_all_that_another_gateway_has_is_said_at_once(tmp_path):
    text = config(tmp_path, more='state_path = "here.json"\n')
    async with program(tmp_path, text, "serve") as first:
        line = (await first.process.stdout.readline()).decode()
        metrics = line.removeprefix("metrics on http://").partition("/")[0]
        taken = ["--listen", str(first.address), "--metrics-listen", metrics]
        with pytest.raises(AssertionError) as caught:
            async with program(tmp_path, text, "serve", *taken):
                pass

    lines = str(caught.value).lower().split("\n")
    said = [line for line in lines if line.startswith("cortex serve: ")]
    use = "address already in use (stop what holds it, or use"
    assert said[0] == f"cortex serve: cannot listen on {first.address}: {use} --listen)"
    assert said[1] == f"cortex serve: cannot listen on {metrics}: {use} --metrics-listen)"
    assert "gateway.state_path" in said[2]
    assert len(said) == 3


async def test_a_state_file_that_cannot_be_locked_is_a_warning(tmp_path):
    (tmp_path / "file").touch()
    text = config(tmp_path, more='state_path = "file/state.json"\n')
    async with program(tmp_path, text, "serve") as gateway:
        gateway.process.terminate()
        said = (await gateway.process.stderr.read()).decode()

    assert f"state.lock: File exists: {tmp_path}/file; " in said
    assert "another gateway may use the same files" in said


@pytest.mark.parametrize(
    ("more", "options", "message"),
    [
        ("", ["--neuron", "beast"], "command line: neurons[0].endpoint: expected http://host:port"),
        ("", ["--listen", "x"], "--listen: expected host:port, got 'x'"),
        (
            '[routing]\nstrategy = "lest-loaded"\n',
            *([], "serve.toml: routing.strategy: no routing strategy is called 'lest-loaded'"),
        ),
        (
            '[eviction]\nstrategy = "x"\n',
            *([], "serve.toml: eviction.strategy: no eviction policy is called 'x'"),
        ),
        ("dialects = []\n", [], "serve.toml: gateway.dialects: at least one is needed"),
    ],
)
async def test_what_cannot_start_exits_2_with_one_sentence(tmp_path, more, options, message):
    with pytest.raises(AssertionError) as caught:
        async with program(tmp_path, config(tmp_path, more=more), "serve", *options):
            pass

    [said] = [line for line in str(caught.value).split("\n") if line.startswith("cortex serve")]
    assert said.startswith(f"cortex serve: {message}")
    assert "Traceback" not in str(caught.value)
