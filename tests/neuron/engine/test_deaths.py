"""What happens when a device worker dies, hangs, or its neuron leaves."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from cortex.chat.events import Failed
from cortex.errors import DeviceBusy
from cortex.fleet.model import ModelSpec
from tests.neuron.engine.conftest import load, running_harness
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


async def test_a_stopped_worker_is_replaced_by_the_watchdog(tiny_llama, monkeypatch):
    monkeypatch.setattr("cortex.neuron.workers.PING_S", 0.2)
    async with running_harness(watchdog_s=2.0) as (harness, host):
        await load(harness, tiny_llama)
        pid = harness._workers[0].pid
        os.kill(pid, signal.SIGSTOP)
        await host.until(lambda: ("tiny", "loaded") in host.model_states)
        assert harness._workers[0].pid != pid
        assert await answer(harness, ask("hi"))


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
