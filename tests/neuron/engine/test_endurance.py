"""Much at once, and for long: nobody is forgotten, nothing is left behind, no answer changes."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import shutil
import signal
import socket
import threading
from collections import Counter
from contextlib import aclosing, suppress
from time import perf_counter
from types import SimpleNamespace

import aiohttp
import attrs
import pytest
import pytest_asyncio
import torch

from cortex.chat.events import TextDelta
from cortex.fleet.model import Checkpoint
from cortex.neuron.engine import frames, jobs
from cortex.neuron.engine.batching import Batching
from cortex.neuron.engine.blocks import Blocks
from cortex.neuron.engine.meter import Meter
from cortex.neuron.engine.model import Model
from cortex.neuron.engine.pictures import Picture
from cortex.neuron.engine.runner import Runner
from cortex.neuron.engine.sequence import Sequence
from cortex.neuron.engine.states import States
from cortex.neuron.engine.worker import Worker
from cortex.testing import until
from tests.neuron.engine.conftest import load, running_neuron
from tests.neuron.engine.test_harness import answer, ask

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.xdist_group("torch"),
    pytest.mark.asyncio(loop_scope="module"),
]
VOCABULARY = 32
CHAT = "/v1/chat/completions"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tiny_llama):
    """A neuron of one worker: `tiny`, and `narrow`, whose cache is small."""
    ready, over = asyncio.get_running_loop().create_future(), asyncio.Event()

    async def keep():
        async with running_neuron(tiny_llama, max_sequences=64) as node:
            await node.post("/models/load", model_id="tiny")
            await node.post("/models/load", model_id="narrow", context=256, vram_mb=1)
            ready.set_result(node)
            await over.wait()

    keeping = asyncio.create_task(keep())
    await asyncio.wait({keeping, ready}, return_when="FIRST_COMPLETED")
    if keeping.done():
        keeping.result()
    yield ready.result()
    over.set()
    await keeping


@pytest.fixture
def harness(node):
    return node.neuron.models.harnesses["torch"]


def row_of(node, model):
    """Return what is known of a model, which the worker tells now and then."""
    return next(row for row in node.neuron.health().models if row.id == model)


async def idle(node, model="tiny"):
    """Return what the health says of a model once nothing runs."""

    def is_idle():
        row = row_of(node, model)
        at_work = (row.in_flight, row.queue_depth, row.running, row.waiting, row.tok_s)
        return at_work == (0, 0, 0, 0, 0.0)

    await until(is_idle, 30)
    return next(row for row in (await node.get("/health"))["models"] if row["id"] == model)


async def test_sixty_four_at_once_in_a_cache_for_eight_say_what_each_says_alone(node, harness):
    """Half of them greedy, half of them by a seed; a seventh of the tokens fits the cache."""
    asked = []
    for number in range(64):
        how = {"temperature": 0.0} if number % 2 else {"temperature": 1.0, "seed": number}
        text = f"{number:02d} {'tell me more '[number % 5 :] * 4}"
        more = {"model": "narrow", "max_tokens": 32, "logit_bias": {0: -100.0}}
        asked.append(ask(text, f"r{number}", **more, **how))
    alone = [await answer(harness, request) for request in asked]
    before = await idle(node, "narrow")

    worker = harness._workers[0]
    os.kill(worker.pid, signal.SIGSTOP)  # when it goes on, all of them are there
    answers = [asyncio.create_task(answer(harness, request)) for request in asked]
    try:
        await until(lambda: len(worker._streams) == len(asked), 30)
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    together = await asyncio.gather(*answers)

    assert [text for text, _ in together] == [text for text, _ in alone]
    assert {last.usage.completion_tokens for _, last in together} == {32}
    await until(lambda: row_of(node, "narrow").preemptions_total > before["preemptions_total"], 30)
    assert (await idle(node, "narrow"))["kv_used_pct"] == 0.0


async def first_text(harness, request):
    """Return when the first text came, in ms, and the last event."""
    began, first, last = perf_counter(), None, None
    async for event in harness.generate(request):
        if isinstance(event, TextDelta) and first is None:
            first = 1e3 * (perf_counter() - began)
        last = event
    return first, last


async def test_a_prompt_of_1500_tokens_is_not_computed_twice(harness):
    made = random.Random(1)
    long = "".join(made.choices("abcdefgh ijklmnop", k=1480))
    while await harness.count(ask(long)) < 1500:
        long += " word"

    first_ms, first = await first_text(harness, ask(long, "a", max_tokens=4))
    again_ms, again = await first_text(harness, ask(long, "b", max_tokens=4))

    prompt = again.usage.prompt_tokens
    print(f"\n{prompt} tokens, first text {first_ms:.1f} ms, again {again_ms:.1f} ms")
    assert prompt >= 1500
    assert first.usage.cached_tokens < 100
    assert again.usage.cached_tokens >= prompt - 17  # all but what is left of a block


# Whoever comes and goes.


class Noise:
    """A body of no model, which fails now and then."""

    name = "noise"

    def __init__(self, made):
        self._made = made
        self._draws = torch.Generator().manual_seed(0)

    def logits(self, step, _cache):
        chance = self._made.random()
        if chance < 0.01:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if chance < 0.02:
            raise ValueError("a mistake of ours")
        return torch.randn(len(step.rows), VOCABULARY, generator=self._draws)


class Wayward:
    """A grammar that has no way on now and then."""

    def __init__(self, made):
        self._made = made

    def allowed(self):
        if self._made.random() < 0.05:
            raise ValueError("no way on")
        return torch.ones(VOCABULARY, dtype=torch.bool)

    def accept(self, _token):
        return self._made.random() < 0.1


def worker_of(engine, channel):
    """Return a worker with this engine as model `m`, whose threads do not run."""
    worker = Worker(channel, torch.device("cpu"))
    text = SimpleNamespace(sight=None)
    weights = SimpleNamespace(pooling=None, known=VOCABULARY, text=text)
    worker._models["m"] = Model(
        weights=weights, engine=engine, context=256, body="noise", used_bytes=0
    )
    worker._meters["m"] = Meter("m", engine)
    return worker


def read_ends(channel, ends, why):
    """Count how requests end until a worker closes, and why some are lost."""
    while (body := frames.receive(channel)) is not None:
        event = jobs.decode_event(body)
        if isinstance(event, jobs.Done | jobs.Lost):
            ends[event.id] += 1
        if isinstance(event, jobs.Lost):
            why[event.message.split(":")[0]] += 1


DOT = Picture(at=0, height=1, width=1, rgb=b"rgb", digest=b"dot")


def a_job(made, number):
    """Return one job of all kinds there are, about one of the requests so far."""
    if made.random() < 0.4:
        return jobs.Cancel(id=f"{made.randrange(max(number - 30, 0), number + 1)}")
    model = "m" if made.random() < 0.95 else "gone"
    tokens = made.randrange(1, 256) if made.random() < 0.1 else made.randrange(1, 60)
    prompt = [3 + made.randrange(2)] * made.choice([0, 16, 40])
    prompt += made.choices(range(3, VOCABULARY), k=tokens)
    return jobs.Generate(
        id=f"{number}",
        model=model,
        prompt=prompt,
        max_tokens=made.randrange(1, 40) if made.random() < 0.1 else made.randrange(1, 6),
        seed=number,
        frequency_penalty=made.choice([0, 0, 0.5]),
        logprobs=made.choice([None, None, 2]),
        fault="oom" if made.random() < 0.02 else None,
        pictures=[] if number % 97 else [DOT],  # which it does not see
    )


@pytest.mark.parametrize(
    ("runs_ahead", "operations"), [(True, 10_000), (False, 3_000)], ids=["ahead", "in step"]
)
async def test_ten_thousand_requests_cancels_and_faults_leave_nothing_behind(
    runs_ahead, operations
):
    made = random.Random(7)
    blocks, rows = Blocks(20), 8
    states = States({}, 0, torch.float32, torch.device("cpu"))
    cache = SimpleNamespace(tile_tokens=16, states=states)  # nobody writes into
    runner = Runner(Noise(made), cache, rows=rows, blocks=16, device=torch.device("cpu"))
    engine = Batching(
        runner,
        blocks,
        rows=rows,
        budget_tokens=96,
        end_tokens=frozenset({5, 6, 7}),
        runs_ahead=runs_ahead,
    )
    ours, theirs = socket.socketpair()
    ends, why = Counter(), Counter()
    reading = threading.Thread(target=read_ends, args=(ours, ends, why))
    reading.start()
    worker = worker_of(engine, theirs)
    started, objects = set(), []
    try:
        with torch.inference_mode():
            for number in range(operations):
                job = a_job(made, number)
                if isinstance(job, jobs.Generate):
                    started.add(job.id)
                    if made.random() < 0.1:
                        worker._grammars[job.id] = Wayward(made)
                worker._accept(job)
                while made.random() < 0.4 or len(engine.requests) > 20:
                    worker._step()
                worker._tell()
                if number in (operations // 2, operations - 1):
                    while engine.has_work:
                        worker._step()
                    engine.scheduler.check()
                    gc.collect()
                    objects.append(len(gc.get_objects()))
    finally:
        theirs.close()
        reading.join(timeout=20)
        ours.close()

    scheduler = engine.scheduler
    assert blocks.used == 0
    assert blocks.free == 19
    assert sorted(scheduler._rows) == list(range(1, rows + 1))
    left = (scheduler.running, scheduler.waiting, scheduler.moved, engine._found, worker._owners)
    assert not any(left)
    assert not engine._launched
    assert not worker._grammars
    assert not [thing for thing in gc.get_objects() if type(thing) is Sequence]
    assert objects[1] < objects[0] + 1_000
    assert scheduler.preemptions
    assert ends == Counter(started)  # each has one end
    assert len(why) >= 5, why


def chat(text, model="tiny", **more):
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


async def leaves(node, made):
    """Ask for a long answer, read a little or none of it, and go."""
    body = chat(f"{made.random()}", max_tokens=1500, stream=True, logit_bias={"0": -100})
    async with node.client.post(node.url + CHAT, json=body) as response:
        for _ in range(made.randrange(4)):
            await response.content.readuntil(b"\n\n")
        response.close()


async def gives_up(node, made):
    """Ask for a whole answer and go before there can be one."""
    body = chat(f"{made.random()}" * made.choice([1, 50]), max_tokens=900, logit_bias={"0": -100})
    with suppress(TimeoutError):
        async with asyncio.timeout(made.random() / 5), node.client.post(node.url + CHAT, json=body):
            pass


async def stays(node, made):
    text = made.choice(["the same", f"{made.random()}"])
    answered = await node.post(CHAT, **chat(text, max_tokens=made.randrange(1, 12)))
    assert answered["choices"][0]["finish_reason"] in ("stop", "length")


BAD = (
    (chat("x" * 3000), 400, "context_length_exceeded"),
    (chat("x", temperature=9), 400, "invalid_value"),
    (chat("x", logit_bias={"99999": 1}), 400, "invalid_value"),
    (chat("x", model="nobody"), 404, "model_not_found"),
    (chat("x", max_tokens="many"), 400, "invalid_value"),
    (
        chat(
            "x",
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"type": "strng"}, "strict": True},
            },
        ),
        400,
        "invalid_value",
    ),
)


async def asks_badly(node, made):
    body, status, code = made.choice(BAD)
    assert (await node.post(CHAT, status, **body))["error"]["code"] == code


async def test_hundreds_who_leave_and_ask_badly_leave_nothing_behind(node, harness):
    made = random.Random(11)
    worker = harness._models["tiny"].worker
    pid = worker.pid
    before = await node.post(CHAT, **chat("same", temperature=0, max_tokens=8))
    tasks, slots = len(asyncio.all_tasks()), asyncio.Semaphore(24)

    async def one(they):
        async with slots:
            await made.choice([leaves, leaves, gives_up, stays, asks_badly])(they, made)

    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client,
        asyncio.TaskGroup() as group,
    ):
        they = attrs.evolve(node, client=client)
        for _ in range(400):
            group.create_task(one(they))

    row = await idle(node)
    assert row["kv_used_pct"] == 0.0
    assert worker.pid == pid
    await until(lambda: not worker._models and not worker._streams, 20)
    after = await node.post(CHAT, **chat("same", temperature=0, max_tokens=8))
    assert after["choices"] == before["choices"]
    await until(lambda: len(asyncio.all_tasks()) <= tasks, 20)


async def test_the_health_answers_while_the_device_is_saturated(node, harness):
    busy = asyncio.Semaphore(0)

    async def keep_busy(number):
        more = {"max_tokens": 1800, "logit_bias": {0: -100.0}}
        while True:
            async with aclosing(harness.generate(ask(f"{number}", f"r{number}", **more))) as events:
                async for event in events:
                    if isinstance(event, TextDelta):
                        busy.release()

    tasks = [asyncio.create_task(keep_busy(number)) for number in range(32)]
    for _ in tasks:
        await busy.acquire()
    times = []
    for _ in range(200):
        began = perf_counter()
        health = await node.get("/health")
        times.append(1e3 * (perf_counter() - began))
        assert health["status"] == "ok"
        await asyncio.sleep(0.005)
    assert harness.stats("tiny").in_flight == 32
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

    times.sort()
    print(f"\n/health p50 {times[100]:.1f} ms, p99 {times[197]:.1f} ms, of 200")
    assert times[-1] < 1000


# What can never fit.


async def test_what_can_never_fit_is_refused_before_it_gets_to_the_engine(node):
    before = await idle(node)
    for path, body, param in (
        (CHAT, chat("x" * 2100), "messages"),
        (CHAT, chat("x" * 2100, stream=True, max_tokens=1), "messages"),
        ("/v1/completions", {"model": "tiny", "prompt": [70] * 2048}, "prompt"),
        ("/v1/responses", {"model": "tiny", "input": "x" * 2100}, "messages"),
    ):
        error = (await node.post(path, 400, **body))["error"]
        assert (error["code"], error["type"]) == (
            "context_length_exceeded",
            "invalid_request_error",
        )
        assert error["param"] == param
        assert error["message"].startswith(
            "maximum context length is 2048 tokens, the prompt has 2"
        )
    claude = {**chat("x" * 2100), "max_tokens": 5}
    error = (await node.post("/v1/messages", 400, **claude))["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"] == "prompt is too long: 2102 tokens > 2048 maximum"
    assert (await idle(node))["prompt_tokens_total"] == before["prompt_tokens_total"]


async def test_an_answer_ends_where_the_context_does_however_much_was_asked_for(node):
    body = {"model": "tiny", "prompt": [70] * 2040, "logit_bias": {"0": -100}}
    for asked in (8, 9, 1_000_000):
        answered = await node.post("/v1/completions", max_tokens=asked, **body)
        assert answered["usage"]["completion_tokens"] == 8
        assert answered["choices"][0]["finish_reason"] == "length"
    last = {**body, "prompt": [70] * 2047, "max_tokens": 5}
    assert (await node.post("/v1/completions", **last))["usage"]["completion_tokens"] == 1


async def test_the_context_is_what_the_cache_holds_where_that_is_less(
    harness, tiny_llama, tmp_path
):
    folder = tmp_path / "long"
    shutil.copytree(tiny_llama.path, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1 << 15}))
    loaded = await load(
        harness, Checkpoint(path=folder, format="safetensors", size_bytes=1), "long", vram_mb=2
    )
    assert 2048 <= loaded.context < 1 << 15
    worker = harness._models["long"].worker
    most = loaded.context - 10
    job = jobs.Generate(
        id="w", model="long", prompt=[70] * most, max_tokens=10, logit_bias={0: -100.0}
    )
    *tokens, done = [event async for event in worker.ask(job)]
    assert len(tokens) == 10
    assert done.reason == "length"
    over = jobs.Generate(id="x", model="long", prompt=[70] * most, max_tokens=11)
    (lost,) = [event async for event in worker.ask(over)]  # never sent; it would wait for ever
    assert f"it takes {loaded.context + 1} tokens, the cache holds {loaded.context}" in lost.message
    await harness.unload("long")
