"""A model split over two workers: asked by HTTP, refused, broken and healed."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import gettempdir

import attrs
import pytest
import pytest_asyncio

from cortex.fleet.model import ModelSpec
from cortex.neuron.engine import jobs
from cortex.testing import until
from tests.neuron.engine.conftest import CPU, running_neuron
from tests.neuron.engine.tiny import save_tiny_seeing
from tests.neuron.images.drawn import data_url, drawn, encoded

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.xdist_group("torch"),
    pytest.mark.asyncio(loop_scope="module"),
]
TWO = (*CPU, attrs.evolve(CPU[0], index=1))
SAID = {"max_tokens": 24, "temperature": 0, "logit_bias": {"0": -100}}
DRAWN = {"max_tokens": 24, "temperature": 0.9, "seed": 5, "top_p": 0.9}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tiny_llama):
    """Two devices, `one` on the second of them and `both` on both."""
    async with running_neuron(tiny_llama, TWO, max_sequences=8) as node:
        await node.post("/models/load", model_id="one", devices=[1])
        await node.post("/models/load", model_id="both", tensor_parallel=2)
        yield node


def workers_of(node):
    return node.neuron.models.harnesses["torch"]._workers


async def said(node, model, content="one two", **more):
    [choice] = (await node.chat(model, content, **more))["choices"]
    return choice["message"]["content"], choice["finish_reason"]


@asynccontextmanager
async def long_answer(node):
    """Yield a stream of `both` that has begun, and does not end by itself for a while."""
    messages = [{"role": "user", "content": "a long one"}]
    body = {**SAID, "model": "both", "messages": messages, "stream": True, "max_tokens": 1900}
    async with node.client.post(node.url + "/v1/chat/completions", json=body) as response:
        await response.content.readany()
        yield response


async def test_it_says_what_it_says_on_one_device(node):
    asked = [(f"question {n}" * n, more) for n in range(1, 5) for more in (SAID, DRAWN)]
    both, one = [
        await asyncio.gather(*(said(node, model, text, **more) for text, more in asked))
        for model in ("both", "one")
    ]
    assert both == one
    assert {reason for _, reason in both} <= {"length", "stop"}


async def test_it_is_shown_on_both_devices_with_the_memory_of_both(node):
    models = {model["id"]: model for model in await node.get("/models")}
    assert models["both"]["devices"] == [0, 1]
    assert models["one"]["devices"] == [1]
    assert models["both"]["vram_used_mb"] >= models["one"]["vram_used_mb"] > 0
    health = {model["id"]: model for model in (await node.get("/health"))["models"]}
    assert health["both"]["body"].startswith("fused")


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ({"tensor_parallel": 3}, 422, "tp_not_supported", "over 3 devices: this node has 2"),
        (
            {"tensor_parallel": 2, "devices": [1]},
            *(422, "tp_not_supported", "over 2 devices: devices are [1]"),
        ),
        ({"devices": [0, 7]}, 503, "device_unavailable", "no device 7"),
        ({"tensor_parallel": 2, "vram_mb": 1 << 40}, 507, "insufficient_vram", "MiB"),
    ],
    ids=str,
)
async def test_what_there_are_no_devices_for_is_refused(node, body, status, code, message):
    error = (await node.post("/models/load", status, model_id="wide", **body))["error"]
    assert error["code"] == code
    assert message in error["message"]


async def test_a_model_that_cannot_be_split_is_refused_and_harms_nobody(node, tiny_llama, tmp_path):
    before = [worker.pid for worker in workers_of(node).values()]
    folder = tmp_path / "gelu"
    shutil.copytree(tiny_llama.path, folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"silu"', '"gelu"'))
    harness = node.neuron.models.harnesses["torch"]
    checkpoint = attrs.evolve(tiny_llama, path=folder)
    for _ in range(2):
        with pytest.raises(Exception, match=r"cannot be split over devices.*not silu") as caught:
            await harness.split(
                ModelSpec(id="gelu", min_devices=2), checkpoint, (0, 1), lambda _: None
            )
        assert caught.value.status == 422
    assert await said(node, "both", **SAID) == await said(node, "one", **SAID)
    assert [worker.pid for worker in workers_of(node).values()] == before


async def test_an_unload_frees_every_rank_and_the_next_load_finds_them_well(node):
    pids = [worker.pid for worker in workers_of(node).values()]
    await node.post("/models/load", model_id="second", tensor_parallel=2)
    answers = [asyncio.create_task(said(node, name, **SAID)) for name in ("both", "second")]
    first, second = await asyncio.gather(*answers)
    assert first == second
    for model in ("second", "both"):
        await node.post("/models/unload", model_id=model)
    busy = (await node.post("/devices/1/restart", 409))["error"]
    assert "device 1 has one" in busy["message"]
    await node.post("/models/load", model_id="both", devices=[0, 1])
    assert await said(node, "both", **SAID) == first
    assert [worker.pid for worker in workers_of(node).values()] == pids


@pytest.mark.parametrize("stage", ["reading config", "reading weights", "moving to device"])
async def test_a_load_over_two_that_is_called_off_leaves_nothing_on_either(node, tiny_llama, stage):
    harness, loading = node.neuron.models.harnesses["torch"], []

    def report(progress):
        if progress.stage == stage:
            loading[0].cancel()

    pids = [worker.pid for worker in workers_of(node).values()]
    work = harness.split(ModelSpec(id="off", min_devices=2), tiny_llama, (0, 1), report)
    loading.append(asyncio.create_task(work))
    await asyncio.wait(loading)
    assert loading[0].cancelled()
    await harness.unload("off")

    for worker in workers_of(node).values():
        asked = jobs.Generate(id="off", model="off", prompt=[1], max_tokens=1)
        assert [event async for event in worker.ask(asked)] == [
            jobs.Lost(id="off", message="model 'off' is not loaded")
        ]
        assert "off" not in worker.shares
    assert [worker.pid for worker in workers_of(node).values()] == pids
    await node.post("/models/load", model_id="off", tensor_parallel=2)
    assert await said(node, "off", **SAID) == await said(node, "one", **SAID)
    await node.post("/models/unload", model_id="off")


async def test_a_rank_that_hangs_is_ended_the_others_with_it_and_all_come_back(node, monkeypatch):
    workers = workers_of(node)
    before = await said(node, "both", **SAID)
    pids = [worker.pid for worker in workers.values()]
    async with long_answer(node) as response:
        os.kill(pids[1], signal.SIGSTOP)  # rank 0 waits for it in a collective
        with monkeypatch.context() as patch:
            patch.setattr("cortex.neuron.workers.PING_S", 0.5)
            patch.setattr(workers[1], "_watchdog_s", 2.0)
            rest = await response.content.read()
    assert b"upstream_died" in rest
    await until(lambda: node.neuron.models.entry("both").status == "loaded", 150)
    assert await said(node, "both", **SAID) == before
    await until(lambda: node.neuron.models.entry("one").status == "loaded", 150)
    assert await said(node, "one", **SAID) == before
    assert not {*pids} & {worker.pid for worker in workers.values()}


async def test_pictures_are_seen_by_both_ranks_as_by_one(tmp_path):
    async with running_neuron(save_tiny_seeing(tmp_path), TWO, max_sequences=8) as node:
        await check_pictures(node)


async def check_pictures(node):
    """Check that a model sees on two devices what it sees on one."""
    url = {"url": data_url(encoded(drawn(80, 48)))}
    text, shown = {"type": "text", "text": "what?"}, {"type": "image_url", "image_url": url}
    asked = [[text, shown], [shown, text, shown], [shown, text, shown], "no picture"]
    await node.post("/models/load", model_id="one", devices=[1])
    await node.post("/models/load", model_id="both", tensor_parallel=2)
    models = {model["id"]: model for model in await node.get("/models")}
    assert "vision" in models["both"]["capabilities"]
    for more in (SAID, DRAWN):
        both, one = [
            await asyncio.gather(*(said(node, name, content, **more) for content in asked))
            for name in ("both", "one")
        ]
        assert both == one


FAULTS = int(os.environ.get("CORTEX_TEST_FAULTS", "3"))
THREE = (*TWO, attrs.evolve(CPU[0], index=2))


def traces():
    """Return what a process leaves behind: children, what they listen on, shared memory, files."""
    children = {
        child
        for each in Path("/proc/self/task").glob("*/children")
        for child in each.read_text().split()
    }
    sockets = Path("/proc/net/tcp").read_text().splitlines()[1:]
    listening = {line.split()[1] for line in sockets if line.split()[3] == "0A"}
    groups = {path.name for path in Path(gettempdir()).glob("cortex-group-*")}
    return children, listening, {path.name for path in Path("/dev/shm").iterdir()}, groups


@pytest.mark.timeout(120 + 40 * FAULTS)
async def test_faults_in_a_row_leave_nothing_behind_and_others_alone(tiny_llama, monkeypatch):
    monkeypatch.setattr("cortex.neuron.workers.PING_S", 0.5)
    made = random.Random(5)
    before = traces()
    options = {"max_sequences": 8, "watchdog_s": 3.0, "debug_faults": True}
    async with running_neuron(tiny_llama, THREE, **options) as node:
        await node.post("/models/load", model_id="apart", devices=[2])
        await node.post("/models/load", model_id="both", devices=[0, 1])
        workers, wanted = workers_of(node), await said(node, "apart", **SAID)
        alone = workers[2].pid
        for number in range(FAULTS):
            hit = workers[made.randrange(2)].pid
            async with long_answer(node) as response:
                if number % 3 == 2:  # in rank 0's step, beside the long one
                    await node.chat("both", "!fault poison", 502)
                else:
                    os.kill(hit, made.choice((signal.SIGKILL, signal.SIGSTOP)))
                assert await said(node, "apart", **SAID) == wanted
                assert b"upstream_died" in await response.content.read()
            await until(lambda: node.neuron.models.entry("both").status == "loaded", 60)
            assert await said(node, "both", **SAID) == wanted
            assert workers[2].pid == alone
        children = {str(worker.pid) for worker in workers.values()}
        now = traces()
        assert now[0] - before[0] == children
        assert len(now[3] - before[3]) == 1
    after = traces()
    for kind, was in zip(after, before, strict=True):
        assert kind <= was
