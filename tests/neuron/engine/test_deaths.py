"""What happens when a device worker dies, hangs, or its neuron leaves."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from unittest.mock import Mock

import attrs
import pytest

from cortex.chat.events import Failed
from cortex.errors import DeviceBusy
from cortex.fleet.model import ModelSpec
from cortex.neuron.engine import jobs
from cortex.neuron.workers import DeviceWorker, Watcher
from cortex.testing import until
from tests.neuron.engine.conftest import CPU, load, running_harness, running_neuron
from tests.neuron.engine.test_harness import answer, ask

pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("torch")]


async def test_a_killed_worker_fails_its_answers_and_comes_back_with_its_models(tiny_llama):
    async with running_harness() as (harness, host):
        await load(harness, tiny_llama)
        before = await answer(harness, ask("same", "a"))
        events = harness.generate(ask("long", "b", max_tokens=2000))
        await anext(events)
        await anext(events)
        os.kill(harness._workers[0].pid, signal.SIGKILL)
        last = [event async for event in events][-1]
        assert isinstance(last, Failed)
        assert "signal 9" in str(last.error)
        await host.until(lambda: host.device_states[-1:] == ["ok"] and len(host.model_states) >= 2)
        assert host.model_states == [("tiny", "recovering"), ("tiny", "loaded")]
        assert "recovering" in host.device_states
        assert (await answer(harness, ask("same", "c")))[0] == before[0]


@pytest.mark.parametrize("gone", ["first", "second"])
async def test_a_model_may_be_unloaded_while_a_new_worker_loads_the_last_ones(gone):
    """Whether its own turn is yet to come, or its load is through before the worker hears of it."""
    watcher = Mock(spec=Watcher)
    worker = DeviceWorker(0, "cpu", watcher, threads=1, watchdog_s=5.0)
    told = Counter()
    worker._send = lambda job: told.update([(type(job), job.model)])
    names = ["first", "second"]
    worker._kept = {name: jobs.Load(model=name, path="", dtype="auto") for name in names}
    worker._ready.set()

    def loaded(name):
        worker._handle(jobs.Loaded(model=name, used_bytes=1, context=1, text=Mock()))

    recovering = asyncio.create_task(worker._recover())
    await until(lambda: told[jobs.Load, "first"])
    unloading = asyncio.create_task(worker.unload(gone))
    await until(lambda: told[jobs.Unload, gone])
    loaded("first")
    worker._handle(jobs.Unloaded(model=gone))
    await unloading
    if gone == "first":
        await until(lambda: told[jobs.Load, "second"])
        loaded("second")
    await recovering

    (left,) = {*names} - {gone}
    assert [*worker._kept] == [left]
    assert [call.args[0] for call in watcher.model_back.call_args_list] == [left]
    watcher.device_changed.assert_called_once_with(0, "ok")


async def test_a_stopped_worker_is_replaced_by_the_watchdog(tiny_llama, monkeypatch):
    monkeypatch.setattr("cortex.neuron.workers.PING_S", 0.2)
    async with running_harness(watchdog_s=2.0) as (harness, host):
        await load(harness, tiny_llama)
        pid = harness._workers[0].pid
        os.kill(pid, signal.SIGSTOP)
        await host.until(lambda: ("tiny", "loaded") in host.model_states)
        assert harness._workers[0].pid != pid
        assert await answer(harness, ask("hi"))


@pytest.mark.timeout(240)
async def test_a_device_fault_costs_the_requests_on_that_device_and_heals_by_itself(tiny_llama):
    """Drills over HTTP, with two devices; a third of the memory is no device fault."""
    two = (*CPU, attrs.evolve(CPU[0], index=1))
    async with running_neuron(tiny_llama, two, debug_faults=True) as node:
        workers = node.neuron.models.harnesses["torch"]._workers
        loads = [
            asyncio.create_task(node.post("/models/load", model_id=name, devices=[index]))
            for name, index in (("a", 0), ("b", 1))
        ]
        await asyncio.gather(*loads)
        pids = [workers[index].pid for index in (0, 1)]
        plain = {"max_tokens": 12, "temperature": 0, "logit_bias": {"0": -100}}
        before = [(await node.chat(name, **plain))["choices"] for name in "ab"]

        far = {**plain, "max_tokens": 1900, "stream": True}
        opened = asyncio.Semaphore(0)
        beside, doomed = [
            asyncio.create_task(stream(node, name, far, opened)) for name in ("b", "a")
        ]
        for _ in range(2):
            await opened.acquire()

        out = (await node.chat("a", "!fault oom", 507))["error"]
        assert (out["code"], out["type"]) == ("insufficient_vram", "api_error")
        assert "too little memory" in out["message"]
        said = await stream(node, "a", {"stream": True}, asyncio.Semaphore(), "!fault oom")
        assert '"code":"insufficient_vram"' in said
        assert "[DONE]" not in said
        assert not doomed.done()

        lost = (await node.chat("a", "!fault poison", 502))["error"]
        assert lost["code"] == "upstream_died"
        assert "the device worker died: RuntimeError: CUDA error: a drill" in lost["message"]
        cut = await doomed
        assert "upstream_died" in cut
        assert "[DONE]" not in cut

        refused = (await node.chat("a", status=503))["error"]
        assert refused["code"] == "device_unavailable"
        health = await node.get("/health")
        assert health["status"] == "degraded"
        assert [device["state"] for device in health["devices"]] != ["ok", "ok"]
        assert health["devices"][1]["state"] == "ok"

        whole = await beside
        assert "[DONE]" in whole
        assert '"completion_tokens":1900' in whole.replace(" ", "")
        await until(lambda: node.neuron.models.entry("a").status == "loaded", 60)
        after = [(await node.chat(name, **plain))["choices"] for name in "ab"]
        assert after == before
        await until(lambda: node.neuron.health().status == "ok", 10)
        assert workers[0].pid != pids[0]
        assert workers[1].pid == pids[1]
        wrong = (await node.chat("a", "!fault fire", 400))["error"]
        assert "no fault 'fire'; there are poison, oom" in wrong["message"]


async def stream(node, model, more, opened, content="a long one"):
    """Return all that was said; *opened* is released with its first piece."""
    messages = [{"role": "user", "content": content}]
    usage = {"include_usage": True}
    body = {"model": model, "messages": messages, "stream_options": usage, **more}
    said = b""
    async with node.client.post(node.url + "/v1/chat/completions", json=body) as response:
        async for piece in response.content.iter_any():
            if not said:
                opened.release()
            said += piece
    return said.decode()


async def test_no_worker_outlives_its_harness(tiny_llama):
    async with running_harness() as (harness, _):
        await load(harness, tiny_llama)
        pid = harness._workers[0].pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_worker_that_is_restarted_is_a_new_process_at_once_and_takes_loads(tiny_llama):
    async with running_harness() as (harness, host):
        await load(harness, tiny_llama)
        said = await answer(harness, ask("same", "a"))
        before = harness._workers[0].pid
        with pytest.raises(DeviceBusy, match="device 0 has tiny"):
            await harness.restart(0)
        assert harness._workers[0].pid == before

        await harness.unload("tiny")
        counting = asyncio.create_task(harness.counter(ModelSpec(id="other"), tiny_llama))
        await asyncio.sleep(0)
        assert harness._workers[0]._texts  # is being read, and will be to its end
        restarting = asyncio.create_task(harness.restart(0))
        also = asyncio.create_task(harness.restart(0))
        await host.until(lambda: host.device_states[-1:] == ["recovering"])
        await load(harness, tiny_llama)  # it waits for the new one
        await asyncio.gather(restarting, also)
        count = await counting

        with pytest.raises(ProcessLookupError):
            os.kill(before, 0)
        assert harness._workers[0].pid != before
        assert (await answer(harness, ask("same", "b")))[0] == said[0]
        assert await count(ask("same")) == await harness.count(ask("same"))
        assert host.device_states == ["ok", "recovering", "recovering", "ok"]
        assert host.model_states == []
