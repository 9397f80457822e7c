"""What a neuron knows of its engine, and how often it is told."""

from __future__ import annotations

import asyncio

import pytest

from cortex.neuron.engine.jobs import Figures
from cortex.neuron.engine.meter import INTERVAL_S, Meter
from tests.neuron.engine.conftest import load
from tests.neuron.engine.test_harness import answer, ask

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.xdist_group("torch"),
    pytest.mark.asyncio(loop_scope="module"),
]


class Engine:
    """Has as many requests as it is told."""

    running = 0

    def figures(self, model, tok_s):
        return Figures(model=model, running=self.running, tok_s=tok_s)


def told(running, tok_s):
    return Figures(model="m", running=running, tok_s=tok_s)


async def test_a_change_is_told_twice_a_second_and_its_end_once():
    engine, now = Engine(), 100.0
    meter = Meter("m", engine)
    assert not meter.is_settled
    assert meter.read(now) == told(0, 0.0)
    assert meter.is_settled

    engine.running, said = 2, []
    for number in range(300):  # three seconds of steps of ten milliseconds
        now += 0.01
        meter.count(1 + number // 100)
        said.append(meter.read(now))
    said = [figures for figures in said if figures]
    assert 3 <= len(said) <= 3 / INTERVAL_S + 1
    assert {figures.running for figures in said} == {2}
    assert [said[0].tok_s, said[-1].tok_s] == pytest.approx([100, 300], rel=0.05)

    engine.running = 0
    assert not meter.is_settled
    said = [meter.read(now + n * INTERVAL_S / 5) for n in range(40)]
    assert [figures for figures in said if figures][-1] == told(0, 0.0)
    assert len([figures for figures in said if figures]) <= 2
    assert meter.is_settled


async def figures(harness, condition, model="tiny"):
    """Return what the harness says of a model once that is so."""
    async with asyncio.timeout(30):
        while not ((stats := harness.stats(model)).running is not None and condition(stats)):
            await asyncio.sleep(0.01)
    return stats


async def test_a_harness_tells_what_runs_what_the_cache_holds_and_what_it_found(harness):
    idle = await figures(harness, lambda stats: stats.running == 0)
    assert idle.body.startswith("fused: its logits are off by ")
    assert (idle.kv_used_pct, idle.preemptions_total, idle.tok_s) == (0.0, 0, 0.0)

    running = [
        asyncio.create_task(answer(harness, ask("x", f"r{n}", max_tokens=1900))) for n in "ab"
    ]
    busy = await figures(harness, lambda stats: stats.running == 2 and stats.tok_s > 0)
    assert busy.kv_used_pct > 0
    assert busy.waiting == 0
    for task in running:
        task.cancel()
    gone = await figures(harness, lambda stats: stats.running == 0 and stats.tok_s == 0)
    assert gone.kv_used_pct == 0.0

    for name in "cd":
        _, last = await answer(harness, ask("the same again and again " * 4, name))
    usage = last.usage
    assert usage.cached_tokens > 50
    after = await figures(
        harness, lambda stats: stats.prompt_tokens_total >= gone.prompt_tokens_total + 200
    )
    assert after.prompt_tokens_total == gone.prompt_tokens_total + 2 * usage.prompt_tokens
    assert after.cached_tokens_total == gone.cached_tokens_total + usage.cached_tokens
    found = 100 * after.cached_tokens_total / after.prompt_tokens_total
    assert after.prefix_hit_pct == pytest.approx(found, abs=0.1)


async def test_a_model_that_was_unloaded_leaves_nothing(harness, tiny_llama):
    await load(harness, tiny_llama, "gone")
    await figures(harness, lambda stats: stats.running == 0, "gone")
    worker = harness._models["gone"].worker
    await harness.unload("gone")
    assert set(worker.figures) == {"tiny"}
    assert harness.stats("gone").body is None
