"""The neuron's API: shapes, single-flight loads, tokens, and who is at fault."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path

import attrs
import pytest
from aiohttp import web

import cortex
from cortex.chat.events import ChatEvent, Started, TextDelta
from cortex.errors import InsufficientVram
from cortex.fleet.model import Checkpoint, ModelStats, RunningModel
from cortex.neuron.harnesses.echo import Echo, EchoOptions
from cortex.sources.hold import Hold
from cortex.testing import until
from cortex.web import Stream
from tests.gateway.running import Wire, chat
from tests.neuron.serving import program, serving


async def test_health_discovery_and_models_have_their_shapes():
    async with serving() as node:
        await node.load("m")
        health = await node.get("/health")
        found = await node.get("/discovery")
        [model] = await node.get("/models")

    assert (health["status"], health["version"]) == ("ok", cortex.__version__)
    assert health["uptime_secs"] >= 0
    assert health["activation"] == {
        "state": "ready",
        "pending": [],
        "in_progress": None,
        "completed": [],
        "failed": [],
    }
    device = health["devices"][0]
    assert device["vram_total_mb"] >= device["vram_free_mb"] > 0
    assert {"index", "kind", "name", "vram_used_mb", "utilization_pct", "temp_c"} <= device.keys()
    assert device["state"] == "ok"
    [row] = health["models"]
    assert (row["id"], row["state"], row["in_flight"], row["queue_depth"]) == ("m", "loaded", 0, 0)
    assert found["harnesses"] == ["echo"]
    assert {"openai-chat", "anthropic-messages"} <= set(found["dialects"])
    assert {"hostname", "os", "kernel", "version", "cuda_version", "driver_version"} <= found.keys()
    assert found["devices"][0]["vram_total_mb"] == device["vram_total_mb"]
    assert (model["id"], model["harness"], model["status"]) == ("m", "echo", "loaded")
    assert model["limit"] == {"context": 4096, "output": 4096}
    assert model["servable"] == {"ok": True, "reason": None}
    assert model["capabilities"] == ["text"]
    assert (model["progress"], model["stage"]) == (None, None)


async def test_a_load_answers_when_it_is_done():
    async with serving(used_mb=5) as node:
        answer = await node.load("m", context=77)
        assert answer == {
            "status": "loaded",
            "model_id": "m",
            "load_s": answer["load_s"],
            "vram_used_mb": 5,
        }
        assert (await node.get("/models"))[0]["limit"]["context"] == 77
        assert (await node.load("m"))["status"] == "loaded"


async def test_a_load_nobody_waits_for_is_202_and_can_be_followed():
    async with serving(load_s=0.5) as node:
        answer = await node.load("m", 202, wait=False)
        assert answer == {"status": "loading", "model_id": "m"}
        [model] = await node.get("/models")
        assert (model["status"], model["servable"]["ok"]) == ("loading", False)
        await node.chat("m", status=404)

        assert (await node.load("m"))["status"] == "loaded"
        assert (await node.load("m", wait=False))["status"] == "loaded"


async def test_who_asks_for_a_load_under_way_joins_it():
    async with serving(load_s=0.3) as node:
        answers = await asyncio.gather(*(node.load("m") for _ in range(20)))

        assert {answer["status"] for answer in answers} == {"loaded"}
        assert len({answer["load_s"] for answer in answers}) == 1


async def test_a_load_goes_on_when_who_asked_leaves():
    async with serving(load_s=0.3) as node:
        asked = asyncio.create_task(node.load("m"))
        await until(lambda: [m.id for m in node.neuron.models.list()] == ["m"])
        asked.cancel()
        await asyncio.wait({asked})

        await until(lambda: node.neuron.models.entry("m").status == "loaded")


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "message"),
    [
        ("/models/load", {}, 400, "missing_required_parameter", "model_id is required"),
        (
            *("/models/load", {"model_id": 5}, 400, "invalid_value"),
            "model_id: expected str, got int",
        ),
        (
            *("/models/load", {"model_id": "m", "harness": "ecko"}, 400, "invalid_value"),
            "this node has no harness 'ecko' (it has echo)",
        ),
        (
            *("/models/load", {"model_id": "m", "context": 0}, 400, "invalid_value"),
            "context: expected int >= 1",
        ),
        (
            *(f"/devices/{'1' * 5000}/restart", {}, 400, "invalid_value"),
            "expected the index of a device, got '111",
        ),
        (
            *("/models/load", {"model_id": "m", "harness": "echo", "devices": [9]}, 503),
            *("device_unavailable", "there is no device 9; this node has [0]"),
        ),
        (
            *("/models/load", {"model_id": "m", "harness": "echo", "tensor_parallel": 2}, 422),
            *("tp_not_supported", "harness 'echo' runs a model on one device, not 2"),
        ),
        ("/models/unload", {"model_id": "m"}, 404, "model_not_found", "model 'm' is not on this"),
        (
            "/models/x/endpoint",
            None,
            404,
            "model_not_found",
            "model 'x' is not loaded on this node",
        ),
        ("/nothing", None, 404, "not_found", "no such path: /nothing"),
        ("/models/load", None, 405, "method_not_allowed", "/models/load takes POST, not GET"),
        (
            *("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": 5}]}),
            *(400, "invalid_value"),
            "messages[0].content: expected str | array | null, got int",
        ),
        (
            *("/v1/chat/completions", {"model": "m", "messages": [{"role": "user"}]}),
            *(404, "model_not_found"),
            "model 'm' is not loaded on this node (POST /models/load loads it)",
        ),
    ],
)
async def test_what_cannot_be_done_is_said(path, body, status, code, message):
    async with serving() as node:
        ask = node.get(path, status) if body is None else node.post(path, status, **body)
        error = (await ask)["error"]

    assert error["code"] == code
    assert error["message"].startswith(message)


async def test_a_model_that_does_not_fit_is_507_with_figures_and_can_be_loaded_smaller():
    async with serving() as node:
        error = (await node.load("m", 507, vram_mb=10**9))["error"]
        assert (error["code"], error["needed_mb"]) == ("insufficient_vram", 10**9)
        assert 0 < error["free_mb"] < 10**9
        [model] = await node.get("/models")
        assert (model["status"], model["error"]) == ("failed", error["message"])

        assert (await node.load("m", vram_mb=1))["vram_used_mb"] == 1


async def test_a_busy_model_is_unloaded_only_by_force():
    async with serving(delay_s=0.05) as node:
        await node.load("m")
        async with node.streaming("m", "word " * 200) as stream:
            await stream.content.readuntil(b"word")
            error = (await node.post("/models/unload", 409, model_id="m"))["error"]
            assert (error["code"], error["in_flight"]) == ("model_busy", 1)
            assert error["message"].startswith("m has 1 requests in flight (with force")

            answer = await node.post("/models/unload", model_id="m", force=True)

            assert answer == {"status": "unloaded", "model_id": "m"}
            assert await node.get("/models") == []


async def test_a_load_that_is_called_off_tells_who_waits():
    async with serving(load_s=30) as node:
        waiting = asyncio.create_task(node.load("m", 503))
        await until(lambda: [m.id for m in node.neuron.models.list()] == ["m"])
        error = (await node.post("/models/unload", 409, model_id="m"))["error"]
        assert error["message"] == "m is loading (with force it is unloaded all the same)"

        await node.post("/models/unload", model_id="m", force=True)

        assert (await waiting)["error"]["message"] == "the load of 'm' was cancelled"
        assert await node.get("/models") == []


class Slow:
    """A harness of a plugin that takes its time, or fails, as told."""

    needs_weights = False

    def __init__(self, _: object = None) -> None:
        self.may_unload = asyncio.Event()
        self.loads = 0

    async def load(self, spec, checkpoint, device, report) -> RunningModel:
        self.loads += 1
        if spec.id == "huge":
            raise InsufficientVram("huge is too large")
        return RunningModel(used_bytes=0, context=100)

    async def unload(self, model_id: str) -> None:
        await self.may_unload.wait()

    async def generate(self, request) -> AsyncGenerator[ChatEvent, None]:
        yield Started(prompt_tokens=1)
        yield TextDelta("so far")
        if request.messages[0].text == "stop":
            return
        raise RuntimeError("the engine fell over")

    def stats(self, model_id: str) -> ModelStats:
        return ModelStats()

    async def aclose(self) -> None: ...


class Reads(Slow):
    """One that needs weights, and cannot load those of `broken`."""

    needs_weights = True

    async def load(self, spec, checkpoint, device, report) -> RunningModel:
        if spec.id == "broken":
            raise InsufficientVram("broken is too large")
        return RunningModel(used_bytes=0, context=100)


class Shelf:
    """A source with one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fetch(self, spec, report):
        return Checkpoint(path=self._folder, format="safetensors", size_bytes=0)


class SlowPlugin:
    def __init__(self, harness: Slow) -> None:
        self.harness = harness

    @cortex.hookimpl
    def cortex_register_harnesses(self, register):
        register("slow", lambda _: self.harness)

    @cortex.hookimpl
    def cortex_choose_harness(self, spec):
        if spec.id == "cursed":
            raise RuntimeError("no such luck")
        return "slow"


async def test_weights_are_held_while_their_model_is_loaded(tmp_path):
    reads = Reads()
    reads.may_unload.set()

    def is_held() -> bool:
        try:
            Hold(tmp_path, alone=True).release()
        except BlockingIOError:
            return True
        return False

    plugins = [SlowPlugin(reads)]
    async with serving(plugins=plugins, harnesses=["slow"], source=Shelf(tmp_path)) as node:
        await node.post("/models/load", model_id="m")
        assert is_held()
        await node.post("/models/unload", model_id="m")
        assert not is_held()
        await node.post("/models/load", 507, model_id="broken")
        assert not is_held()
        await node.post("/models/load", model_id="m")
        assert is_held()
    assert not is_held()


async def test_a_load_of_a_model_that_is_being_unloaded_waits_and_loads_it():
    slow = Slow()
    async with serving(plugins=[SlowPlugin(slow)], harnesses=["slow"]) as node:
        await node.post("/models/load", model_id="m")
        unloading = asyncio.create_task(node.post("/models/unload", model_id="m"))
        await until(lambda: node.neuron.models.entry("m").status == "unloading")
        loading = asyncio.create_task(node.post("/models/load", model_id="m"))
        also = asyncio.create_task(node.post("/models/unload", model_id="m"))
        await asyncio.sleep(0.05)
        slow.may_unload.set()

        assert (await unloading)["status"] == "unloaded"
        assert (await loading)["status"] == "loaded"
        await asyncio.wait({also})
        assert slow.loads == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("go", "internal error; the log has the cause"),
        ("stop", "the answer broke off"),
    ],
)
async def test_a_harness_that_breaks_in_a_stream_ends_it_with_an_error_event(content, message):
    async with serving(plugins=[SlowPlugin(Slow())], harnesses=["slow"]) as node:
        await node.post("/models/load", model_id="m")
        async with node.streaming("m", content) as stream:
            said = await stream.read()
        assert b"so far" in said
        assert message.encode() in said.split(b"\n\n")[-2]
        assert b"[DONE]" not in said
        assert b"HTTP/1.1" not in said

        error = (await node.chat("m", content, 500))["error"]
        assert error["message"] == message


@pytest.mark.parametrize(
    ("begun", "rest"), [("one", " two three"), ("one t", "wo three"), ("four", "one two three")]
)
async def test_echo_goes_on_from_an_answer_that_was_begun(begun, rest):
    async with serving() as node:
        await node.load("m")
        turns = [("user", "one two\nthree"), ("assistant", begun)]
        messages = [{"role": role, "content": content} for role, content in turns]
        answer = await node.post("/v1/chat/completions", model="m", messages=messages)
    assert answer["choices"][0]["message"]["content"] == rest


@pytest.mark.parametrize("length", ["x", "-1", "9999", "3"])
async def test_what_was_said_of_an_answer_has_to_be_behind_the_body(length):
    async with serving() as node:
        await node.load("m")
        body, headers = chat("m"), {"x-cortex-begun": length}
        path = f"{node.url}/v1/chat/completions"
        async with node.client.post(path, data=body, headers=headers) as response:
            assert response.status == 400
            assert "x-cortex-begun" in (await response.json())["error"]["message"]


async def test_a_whole_answer_gets_every_event():
    async with serving() as node:
        await node.load("m")
        seen = []
        dialect = node.neuron._dialects["openai-chat"]
        encoder = dialect.encoder

        def watched(*arguments):
            made = encoder(*arguments)
            feed = made.feed
            made.feed = lambda event, choice: (
                seen.append(type(event).__name__),
                feed(event, choice),
            )[1]
            return made

        dialect.encoder = watched
        await node.chat("m", "a b")

    assert seen == ["Started", "TextDelta", "TextDelta", "Finished"]


async def test_a_default_model_that_fails_is_recorded_and_the_others_are_loaded():
    names = {"huge": None, "cursed": None, "a": "slow", "b": None}
    plugin = SlowPlugin(Slow())
    async with serving(plugins=[plugin], harnesses=["slow"], default_models=names) as node:
        await until(lambda: node.neuron.activator.state.state == "ready")
        state = (await node.get("/health"))["activation"]

    assert state == {
        "state": "ready",
        "pending": [],
        "in_progress": None,
        "completed": ["a", "b"],
        "failed": [
            {"model_id": "huge", "error": "huge is too large"},
            {"model_id": "cursed", "error": "RuntimeError: no such luck"},
        ],
    }


async def test_a_token_is_wanted_on_every_path_but_health():
    async with serving(token="s€cret") as node:
        await node.get("/models")
        wrong = [b"Bearer wrong", b"Bearer \xff\xfe", b"", "Bearer s€cret".encode()[:-1]]
        for value in wrong:
            reader, writer = await asyncio.open_connection(node.address.host, node.address.port)
            head = b"GET /models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            writer.write(head + b"Authorization: " + value + b"\r\n\r\n")
            async with asyncio.timeout(5):
                said = await reader.read()
            assert said.startswith(b"HTTP/1.1 401 "), value
            assert b"this neuron wants its token as a bearer" in said
            writer.close()
        assert (await node.get("/health", Authorization=""))["status"] == "ok"
        await node.get("/v1/models", 401, Authorization="")
        await node.get("/nothing", 401, Authorization="")


async def test_events_begin_with_a_snapshot_and_tell_every_change():
    async with serving() as node, node.events() as first:
        name, snapshot = await first.next()
        assert (name, snapshot["models"], snapshot["health"]["status"]) == ("snapshot", [], "ok")

        await node.load("m")
        loading = await first.until("model")
        assert (loading["id"], loading["status"]) == ("m", "loading")
        progress = await first.until("load_progress")
        assert (progress["id"], progress["stage"]) == ("m", "loading")
        await first.until("model", status="loaded")

        async with node.events() as second:
            name, snapshot = await second.next()
            assert [model["id"] for model in snapshot["models"]] == ["m"]

        await node.post("/models/unload", model_id="m")
        await first.until("model", status="unloading")
        await first.until("model", status="unloaded")
        node.neuron.models.device_changed(0, "poisoned")
        assert await first.until("device") == {"index": 0, "state": "poisoned"}
        assert (await node.get("/health"))["status"] == "degraded"


async def test_a_listener_that_leaves_is_forgotten():
    async with serving() as node:
        async with node.events() as listener:
            await listener.next()
            assert len(node.neuron.events._listeners) == 1
        await until(lambda: not node.neuron.events._listeners)


async def test_a_client_that_leaves_ends_its_generation():
    async with serving(delay_s=0.02) as node:
        await node.load("m")
        async with node.streaming("m", "word " * 500) as stream:
            await stream.content.readuntil(b"word")
            stream.close()
        echo = node.neuron.models.harnesses["echo"]
        await until(lambda: echo.stats("m").in_flight == 0, 2)

        whole = asyncio.create_task(node.chat("m", "word " * 500))
        await until(lambda: echo.stats("m").in_flight == 1)
        whole.cancel()
        await until(lambda: echo.stats("m").in_flight == 0, 2)


@pytest.mark.parametrize("asks", [True, False])
async def test_the_usage_of_a_stream_is_a_trailer_for_who_asks_for_it(asks, monkeypatch):
    before_the_end = []

    async def write(self, data):
        before_the_end.append(data)
        await web.StreamResponse.write(self, data)

    monkeypatch.setattr(Stream, "write", write)
    body = chat("m", content="a b c", stream=True)
    async with serving() as node, await Wire.to(node.address) as wire:
        await node.load("m")
        wire.post(body, headers="x-cortex-usage: 1\r\n" if asks else "")
        status, headers = await wire.head()
        said = await wire.until(b"\r\n0\r\n")
        trailer = (await wire.until(b"\r\n")).strip()
        if asks:
            await wire.until(b"\r\n")
        wire.post(chat("m"))
        again, _ = await wire.head()

    assert (status, again, headers["transfer-encoding"]) == (200, 200, "chunked")
    assert said.endswith(b"data: [DONE]\n\n\r\n0\r\n")
    assert b"cortex-usage" not in said
    # a client that leaves at the last event leaves no usage behind: both go out at once
    assert (b"[DONE]" in b"".join(before_the_end)) is not asks
    if not asks:
        assert trailer == b""
        return
    name, usage = trailer.split(b": ", 1)
    assert name == b"x-cortex-usage"
    counts = json.loads(usage)
    assert (counts["prompt_tokens"], counts["completion_tokens"]) == (3, 3)


async def test_metrics_are_exposed():
    async with serving() as node:
        await node.load("m")
        await node.chat("m", "a b c")
        async with node.client.get(node.url + "/metrics") as response:
            said = await response.text()

    assert 'cortex_neuron_model_generated_tokens_total{model="m"} 3.0' in said
    assert 'cortex_neuron_device_ok{device="0"} 1.0' in said
    assert "cortex_neuron_model_kv_used_pct{" not in said  # echo has no cache


async def test_what_the_engine_says_is_in_the_health_and_in_the_metrics():
    said = ModelStats(
        running=3,
        waiting=2,
        kv_used_pct=41.5,
        prefix_hit_pct=25.0,
        prompt_tokens_total=400,
        cached_tokens_total=100,
        preemptions_total=7,
        drafted_tokens_total=50,
        accepted_tokens_total=30,
        tok_s=123.4,
        body="modules: as it should",
    )
    async with serving() as node:
        await node.load("m")
        node.neuron.models.harnesses["echo"].stats = lambda _: said
        (row,) = (await node.get("/health"))["models"]
        async with node.client.get(node.url + "/metrics") as response:
            metrics = await response.text()

    assert attrs.asdict(said).items() <= row.items()
    for name, value in {
        "running": 3.0,
        "waiting": 2.0,
        "kv_used_pct": 41.5,
        "tok_s": 123.4,
        "prompt_tokens_total": 400.0,
        "cached_prompt_tokens_total": 100.0,
        "preemptions_total": 7.0,
        "drafted_tokens_total": 50.0,
        "accepted_tokens_total": 30.0,
    }.items():
        assert f'cortex_neuron_model_{name}{{model="m"}} {value}' in metrics


async def test_room_is_judged_by_what_is_free_now(monkeypatch):
    async with serving() as node:
        before = node.neuron.models.devices
        full = tuple(attrs.evolve(device, vram_free_mb=1) for device in before)
        node.neuron.models.devices = full  # as read a moment ago

        await node.load("m", vram_mb=2)

        monkeypatch.setattr("cortex.neuron.discovery.read", lambda _: full)
        error = (await node.load("n", 507, vram_mb=2))["error"]
        assert error["code"] == InsufficientVram.code


ECHO = 'harnesses = ["echo"]\n[harness.echo]\n'


async def test_it_answers_at_once_while_it_warms_up(tmp_path):
    text = '[[default_models]]\nmodel_id = "m"\nharness = "echo"\n'
    text = f'harnesses = ["echo"]\n{text}[harness.echo]\nload_s = 3\n'
    async with program(tmp_path, text) as node:
        health = await node.get("/health")

        assert health["activation"]["state"] == "pre_warming"
        assert health["activation"]["in_progress"] == "m"
        assert (await node.get("/models"))[0]["status"] == "loading"


async def test_sigterm_lets_running_requests_end_and_then_exits_0(tmp_path):
    async with program(tmp_path, ECHO + "delay_s = 0.05") as node:
        await node.load("m")
        async with node.streaming("m", "word " * 20) as stream, node.events() as listener:
            await stream.content.readuntil(b"word")
            await listener.next()
            node.process.terminate()
            said = await stream.read()
            await listener.rest()

        assert said.endswith(b"data: [DONE]\n\n")
        async with asyncio.timeout(5):
            assert await node.process.wait() == 0


async def test_sigterm_while_a_model_loads_exits_soon(tmp_path):
    async with program(tmp_path, ECHO + "load_s = 60") as node:
        await node.load("m", 202, wait=False)
        node.process.terminate()
        async with asyncio.timeout(5):
            assert await node.process.wait() == 0


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("harnesses = ['ecko']", [], "bad.toml: harnesses: no harness is called 'ecko'"),
        ("[harness.ecko]", [], "bad.toml: harness: no harness is called 'ecko'"),
        ("[sources.fiel]", [], "bad.toml: sources: no source is called 'fiel'"),
        (
            "[sources.file]\npaths = 'x'",
            [],
            "bad.toml: sources.file: paths: expected a list, got 'x' (a string)",
        ),
        (
            ECHO + "delay = 1",
            *([], "bad.toml: harness.echo: delay: unknown key (did you mean 'delay_s'?)"),
        ),
        (ECHO, ["--listen", "nowhere"], "--listen: expected host:port, got 'nowhere'"),
    ],
)
async def test_what_cannot_start_exits_2_with_one_sentence(tmp_path, text, more, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(AssertionError, match=r"cortex neuron: ") as caught:
        async with program(tmp_path, text, "neuron", "--config", str(path), *more):
            pass

    said = [line for line in str(caught.value).split("\n") if line.startswith("cortex neuron")]
    assert said[0].startswith(f"cortex neuron: {message}")


async def test_a_port_in_use_exits_2_with_one_sentence(tmp_path):
    async with serving() as taken:
        with pytest.raises(AssertionError) as caught:
            async with program(tmp_path, ECHO, "neuron", "--listen", str(taken.address)):
                pass

    said = f"cortex neuron: cannot listen on {taken.address}: address already in use"
    assert said in str(caught.value)
    assert "Traceback" not in str(caught.value)


class Processes(Echo):
    """An echo that pretends to have worker processes."""

    def __init__(self, options, host) -> None:
        super().__init__(options, host)
        self.restarted: list[int] = []

    async def restart(self, device: int) -> None:
        self.restarted.append(device)


async def test_a_device_without_models_is_restarted():
    async with serving() as node:
        assert await node.post("/devices/0/restart") == {"status": "restarted", "device": 0}
        await node.load("m")
        harness = Processes(EchoOptions(), node.neuron.models)
        node.neuron.models.harnesses = {**node.neuron.models.harnesses, "processes": harness}

        error = (await node.post("/devices/0/restart", 409))["error"]
        assert (error["code"], error["models"]) == ("device_busy", ["m"])
        assert error["message"] == "device 0 has m"
        assert harness.restarted == []

        await node.post("/models/unload", model_id="m")
        await node.post("/devices/0/restart")
        assert harness.restarted == [0]
        await node.post("/devices/7/restart", 503)
        assert (await node.post("/devices/one/restart", 400))["error"]["param"] == "index"


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({}, ("", 0, 1.0)),
        ({"x-cortex-principal": "zed"}, ("zed", 0, 1.0)),
        ({"x-cortex-priority": "-3", "x-cortex-weight": "2.5"}, ("", -3, 2.5)),
    ],
)
async def test_a_harness_is_told_who_asks(headers, told, monkeypatch):
    asked = []
    async with serving() as node:
        await node.load("m")
        echo = node.neuron.models.harnesses["echo"]
        real = echo.generate
        monkeypatch.setattr(echo, "generate", lambda chat: asked.append(chat) or real(chat))
        url = f"{node.url}/v1/chat/completions"
        async with node.client.post(url, data=chat("m"), headers=headers) as response:
            assert response.status == 200
    [request] = asked
    assert (request.principal, request.priority, request.weight) == told


@pytest.mark.parametrize(
    "headers",
    [{"x-cortex-priority": "high"}, {"x-cortex-weight": "nan"}, {"x-cortex-weight": "0"}],
)
async def test_who_asks_has_to_make_sense(headers):
    async with serving() as node:
        await node.load("m")
        url = f"{node.url}/v1/chat/completions"
        async with node.client.post(url, data=chat("m"), headers=headers) as response:
            assert response.status == 400
