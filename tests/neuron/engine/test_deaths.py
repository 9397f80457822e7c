"""What happens when a device worker dies, hangs, or its neuron leaves."""

from __future__ import annotations

import os
import signal

import pytest

from cortex.chat.events import Failed
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
