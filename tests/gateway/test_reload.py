"""The files are read again while requests run: all of what they say, or nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import socket
from contextlib import asynccontextmanager

import attrs
import pytest

from cortex.config.load import load_gateway
from cortex.config.schema import LedgerSection, RepliesSection
from cortex.fleet.principal import digest
from cortex.gateway import poller
from cortex.testing import FakeNeuron, until
from tests.gateway.running import Wire, bearer, chat, running
from tests.neuron.serving import program
from tests.test_systemd import heard

MODEL = '[[models]]\nid = "m"\n'


class Files:
    """cortex.toml and models.toml of a gateway, to be written anew."""

    def __init__(self, folder) -> None:
        self.path = folder / "cortex.toml"

    def write(self, *nodes, more: str = "", models: str = MODEL, tokens: bool = False) -> None:
        token = 'token = "t"\n' if tokens else ""
        entries = (
            f'[[neurons]]\nname = "{name}"\nendpoint = "{node.endpoint}"\n{token}'
            for name, node in nodes
        )
        self.path.write_text(more + "".join(entries))
        (self.path.parent / "models.toml").write_text(models)

    def read(self):
        config, catalogue = load_gateway(self.path)
        gateway = attrs.evolve(config.gateway, state_path=None)  # as in `running`
        none = {"replies": RepliesSection(), "ledger": LedgerSection()}
        return attrs.evolve(config, gateway=gateway, **none), catalogue


@asynccontextmanager
async def reloading(tmp_path, *nodes, **more):
    """Run a gateway that has read its files once."""
    files = Files(tmp_path)
    files.write(*nodes, **more)
    async with running(read=files.read, models=()) as gateway:
        await gateway.post("/api/v1/reload")
        yield gateway, files


def keys(answer: dict, which: str = "changed") -> list[str]:
    return [change["key"] for change in answer[which]]


async def test_an_answer_says_what_changed_from_what_to_what(tmp_path):
    async with FakeNeuron(["m"]) as a, reloading(tmp_path, ("a", a)) as (gateway, files):
        files.write(("a", a), more="[queue]\nmax_depth = 3\n", models=f"{MODEL}vram_mb = 7\n")

        answer = await gateway.post("/api/v1/reload")

        assert answer["changed"] == [
            {"key": "queue.max_depth", "was": 512, "now": 3},
            {"key": "models[m].vram_mb", "was": None, "now": 7},
        ]
        assert answer["restart"] == []
        assert (await gateway.post("/api/v1/reload"))["changed"] == []
        shown = await gateway.get("/api/v1/config")
        assert shown["config"]["queue"]["max_depth"] == 3
        assert shown["catalogue"]["models"][0]["vram_mb"] == 7


@pytest.mark.parametrize(
    ("more", "models", "message"),
    [
        ("[queue]\nmax_dept = 3\n", MODEL, "cortex.toml: queue.max_dept: unknown key"),
        ("[queue]\nmax_depth = 0\n", MODEL, "cortex.toml: queue.max_depth: expected at least 1"),
        ("[queue\n", MODEL, "cortex.toml: line 1"),
        ("", '[[models]]\nid = ""\n', "models.toml: models[0].id: expected length at least 1"),
        ('[routing]\nstrategy = "x"\n', MODEL, "cortex.toml: routing.strategy: no routing strat"),
        ('[eviction]\nstrategy = "x"\n', MODEL, "cortex.toml: eviction.strategy: no eviction"),
        ('[auth]\nuse = ["x"]\n', MODEL, "cortex.toml: auth.use: no authenticator is called 'x'"),
        (
            '[[upstreams]]\nname = "u"\nendpoint = "http://x:1"\ndialects = ["x"]\n',
            *(MODEL, "cortex.toml: upstreams[0].dialects: no dialect is called 'x'"),
        ),
    ],
)
async def test_a_bad_file_is_refused_whole_and_the_old_one_stays(tmp_path, more, models, message):
    async with FakeNeuron(["m"]) as a, reloading(tmp_path, ("a", a)) as (gateway, files):
        before = await gateway.get("/api/v1/config")
        files.write(("a", a), ("b", a), more=more, models=models)

        answer = await gateway.post("/api/v1/reload", 422)

        assert answer["error"]["code"] == "reload_refused"
        assert message in answer["error"]["message"]
        assert await gateway.get("/api/v1/config") == before
        assert (await gateway.ask())["headers"]["x-cortex-node"] == "a"


async def test_what_only_a_restart_can_change_is_named_and_stays(tmp_path):
    async with FakeNeuron(["m"]) as a, reloading(tmp_path, ("a", a)) as (gateway, files):
        before = (await gateway.get("/api/v1/config"))["config"]["gateway"]["listen"]
        files.write(("a", a), more='[gateway]\nlisten = "127.0.0.1:7"\ndrain_s = 7\n')

        answer = await gateway.post("/api/v1/reload")

        assert answer["changed"] == [{"key": "gateway.drain_s", "was": 60.0, "now": 7.0}]
        listen = {"key": "gateway.listen", "was": before, "now": "127.0.0.1:7"}
        assert listen in answer["restart"]
        assert (await gateway.get("/api/v1/config"))["config"]["gateway"]["listen"] == before
        assert keys(await gateway.post("/api/v1/reload"), "restart") == keys(answer, "restart")


async def test_a_node_that_is_added_keeps_what_it_has_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(poller, "FIRST_ROUND_S", 20.0)  # it may answer late on a busy machine
    async with FakeNeuron(["m"]) as a, reloading(tmp_path) as (gateway, files):
        files.write(("a", a))

        assert keys(await gateway.post("/api/v1/reload")) == ["neurons[a]"]

        assert (await gateway.ask())["headers"]["x-cortex-route"] == "loaded"
        assert a.counts["load"] == 0


async def test_a_node_that_is_removed_finishes_its_stream_and_is_asked_no_more(tmp_path):
    async with (
        FakeNeuron(["m"]) as a,
        FakeNeuron(["m"]) as b,
        reloading(tmp_path, ("a", a)) as (gateway, files),
    ):
        a.answer, a.token_s = "word " * 30, 0.02
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m", stream=True))
            await client.until(b"word")
            files.write(("b", b))
            await gateway.post("/api/v1/reload")

            fleet = await gateway.get("/api/v1/fleet")
            assert [node["name"] for node in fleet["nodes"]] == ["b"]
            assert (await gateway.ask())["headers"]["x-cortex-node"] == "b"
            assert b"[DONE]" in await client.until(b"0\r\n\r\n")
        await until(lambda: not [t for t in asyncio.all_tasks() if t.get_name() == "poll a"])


async def test_a_node_that_moves_is_asked_at_its_new_place_and_stays_drained(tmp_path):
    async with (
        FakeNeuron(["m"]) as old,
        FakeNeuron(["m"]) as new,
        reloading(tmp_path, ("a", old)) as (gateway, files),
    ):
        await gateway.post("/api/v1/nodes/a/drain")
        files.write(("a", new))
        assert keys(await gateway.post("/api/v1/reload")) == ["neurons[a].endpoint"]
        await gateway.refused(503, "no_node_available")

        await gateway.post("/api/v1/nodes/a/resume")
        await gateway.ask()
        assert (old.counts["chat"], new.counts["chat"]) == (0, 1)


async def test_a_token_that_changes_is_sent_from_then_on(tmp_path):
    async with FakeNeuron(["m"]) as a, reloading(tmp_path, ("a", a)) as (gateway, files):
        await gateway.ask()
        files.write(("a", a), tokens=True)
        assert keys(await gateway.post("/api/v1/reload")) == ["neurons[a].token"]
        await gateway.ask()

    sent = [headers.get("authorization") for headers in a.headers]
    assert sent == [None, "Bearer t"]


async def test_keys_names_and_strategy_take_effect(tmp_path):
    async with (
        FakeNeuron(["m"]) as a,
        FakeNeuron(["m"]) as b,
        reloading(tmp_path, ("a", a), ("b", b)) as (gateway, files),
    ):
        await gateway.refused(404, "model_not_found", "x")
        more = '[routing]\nstrategy = "round-robin"\n[auth]\nrequire = true\n'
        more += f'[[auth.keys]]\nname = "k"\nadmin = true\nsha256 = "{digest("s")}"\n'
        files.write(("a", a), ("b", b), more=more, models=f'{MODEL}[aliases]\nx = "m"\n')
        await gateway.post("/api/v1/reload")

        await gateway.refused(401, "invalid_api_key")
        asked = [await gateway.ask("x", key="s") for _ in range(4)]
        assert [answer["headers"]["x-cortex-node"] for answer in asked] == ["a", "b", "a", "b"]


async def test_who_waits_goes_by_the_new_configuration(tmp_path):
    full = FakeNeuron(["m"])
    full.max_in_flight, full.ending = 1, "hang"
    async with full as a, FakeNeuron(["m"]) as b, reloading(tmp_path, ("a", a)) as (gateway, files):
        stuck = asyncio.create_task(gateway.ask())
        await until(lambda: a.in_flight["m"] == 1)
        waiting = asyncio.create_task(gateway.ask())
        await until(lambda: gateway.gateway.queues.length("m") == 1)

        files.write(("a", a), ("b", b), more="[queue]\nmax_depth = 1\n")
        await gateway.post("/api/v1/reload")

        assert (await waiting)["headers"]["x-cortex-node"] == "b"
        stuck.cancel()


async def test_a_pin_by_hand_survives_unless_its_node_is_gone(tmp_path):
    async with (
        FakeNeuron(["m"]) as a,
        FakeNeuron() as b,
        reloading(tmp_path, ("a", a), ("b", b)) as (gateway, files),
    ):
        await gateway.post("/api/v1/models/m/pin")
        files.write(("a", a))
        await gateway.post("/api/v1/reload")
        assert (await gateway.get("/api/v1/fleet"))["pins"] == {"m": ["a"]}

        files.write(("b", b))
        await gateway.post("/api/v1/reload")
        assert (await gateway.get("/api/v1/fleet"))["pins"] == {}
        await gateway.ask()


@pytest.mark.promises
async def test_no_request_fails_under_100_reloads_and_nothing_is_loaded_twice(promise, tmp_path):
    async with (
        FakeNeuron(["m"]) as a,
        FakeNeuron(["m"]) as b,
        reloading(tmp_path, ("a", a), ("b", b)) as (gateway, files),
    ):
        a.answer = b.answer = "one two three four"
        a.token_s = b.token_s = 0.004
        done, served = asyncio.Event(), 0

        async def client(streams: bool) -> None:
            nonlocal served
            while not done.is_set():
                if streams:
                    assert (await gateway.stream()).endswith(b"data: [DONE]\n\n")
                else:
                    answer = await gateway.ask()
                    assert answer["choices"][0]["message"]["content"] == "one two three four"
                served += 1

        fleets = itertools.cycle([[("a", a)], [("b", b), ("a", a)], [("b", b)], [("c", a)]])
        strategies = itertools.cycle(["round-robin", "least-loaded", "round-robin"])
        async with asyncio.TaskGroup() as clients:
            for number in range(8):
                clients.create_task(client(number % 2 == 0))
            for number in range(100):
                more = f'[routing]\nstrategy = "{next(strategies)}"\n'
                more += f"[queue]\nmax_depth = {40 + number}\n"
                files.write(*next(fleets), more=more, tokens=number % 3 == 0)
                before = served
                await gateway.post("/api/v1/reload")
                await until(lambda before=before: served > before)
            done.set()

        failed = sum(record.outcome != "ok" for record in gateway.records)
        promise(16, f"100 reloads under load: {failed} of {served} requests failed")
        assert failed == 0
        assert a.counts["load"] + b.counts["load"] == 0
        assert gateway.in_flight() == 0


async def test_sighup_reloads_and_a_bad_file_leaves_the_gateway_as_it_is(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
        (tmp_path / "models.toml").write_text(MODEL)
        start = '[gateway]\nmetrics_listen = "127.0.0.1:0"\n'
        async with FakeNeuron(["m"]) as a, program(tmp_path, start, "serve") as gateway:
            assert (await asyncio.to_thread(heard, manager))["READY"] == "1"
            entry = f'[[neurons]]\nname = "a"\nendpoint = "{a.endpoint}"\n'

            for text in (start + entry, start + entry + "[queu]\n"):
                (tmp_path / "serve.toml").write_text(text)
                gateway.process.send_signal(signal.SIGHUP)
                assert (await asyncio.to_thread(heard, manager))["RELOADING"] == "1"
                assert (await asyncio.to_thread(heard, manager))["READY"] == "1"
                body = json.loads(chat("m"))
                answer = await gateway.post("/v1/chat/completions", **body)
                assert answer["choices"][0]["message"]["content"] == "one two three"


async def test_a_reload_needs_an_admin(tmp_path):
    async with FakeNeuron(["m"]) as a, reloading(tmp_path, ("a", a)) as (gateway, files):
        more = f'[[auth.keys]]\nname = "k"\nsha256 = "{digest("s")}"\n'
        files.write(("a", a), more=more)
        await gateway.post("/api/v1/reload")

        for key, status in ((None, 401), ("s", 403)):
            url = f"{gateway.url}/api/v1/reload"
            async with gateway.client.post(url, headers=bearer(key)) as response:
                assert response.status == status
