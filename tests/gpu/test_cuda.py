"""The neuron's side of a real GPU: found without a CUDA context, used, survived, given back."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess

import attrs
import pytest

from cortex.chat.events import Failed
from cortex.chat.request import EmbeddingRequest, JsonFormat
from cortex.neuron import discovery
from cortex.testing import until
from tests.neuron.engine.conftest import CPU, load, running_harness, running_neuron
from tests.neuron.engine.test_harness import PROMPTS, answer, ask, reference
from tests.neuron.engine.test_rank_workers import (
    SAID,
    check_pictures,
    long_answer,
    said,
    workers_of,
)
from tests.neuron.engine.tiny import save_tiny_seeing

HAS_GPU = subprocess.run(["sh", "-c", "nvidia-smi -L"], capture_output=True, check=False)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(HAS_GPU.returncode != 0, reason="needs an NVIDIA GPU"),
]


@pytest.fixture
def devices():
    found = discovery.discover().devices
    assert found[0].kind == "cuda"
    return found[:1]


def used_mb():
    return discovery.read_gpu(0).vram_used_mb


def test_discovery_names_the_gpu_and_takes_no_memory_on_it():
    before = discovery.discover().devices[0].vram_used_mb
    host = discovery.discover()
    assert host.discovery.driver_version
    assert host.discovery.devices[0].compute_capability
    assert host.devices[0].vram_total_mb > 1000
    assert host.devices[0].vram_used_mb <= before + 16


async def test_greedy_output_on_the_gpu_is_transformers_own(tiny_qwen3, devices):
    async with running_harness(devices=devices, dtype="float32") as (harness, _):
        await load(harness, tiny_qwen3)
        texts = [(await answer(harness, ask(prompt)))[0] for prompt in PROMPTS]
        side = harness._models["tiny"].text
        ids = [side.prompt(ask(prompt)).ids for prompt in PROMPTS]
        assert harness._workers[0]._kind == "cuda"
    expected = await asyncio.to_thread(reference, tiny_qwen3, ids, 16)
    assert texts == [
        "".join(map(side.vocabulary.detokenizer(()).feed, tokens)) for tokens in expected
    ]


async def test_an_answer_on_the_gpu_follows_its_schema(tiny_llama, devices):
    number = {"type": "integer", "minimum": 0, "maximum": 999}
    schema = {"properties": {"a": number, "b": {"enum": ["x", "y"]}}, "required": ["a", "b"]}
    schema = {"type": "object", "additionalProperties": False, **schema}
    async with running_harness(devices=devices) as (harness, _):
        await load(harness, tiny_llama)
        for seed in range(4):
            request = ask("x", temperature=1.0, seed=seed, max_tokens=300, logprobs=2)
            text, _ = await answer(harness, attrs.evolve(request, format=JsonFormat(schema=schema)))
            found = json.loads(text)
            assert found.keys() == {"a", "b"}
            assert 0 <= found["a"] <= 999


async def test_vectors_on_the_gpu_are_those_of_the_cpu(tiny_llama, devices, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(tiny_llama.path, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaModel"]}))
    checkpoint = attrs.evolve(tiny_llama, path=folder)
    request = EmbeddingRequest(id="r", model="tiny", inputs=("a", "b" * 300), dimensions=16)
    found = []
    for kind in (devices, CPU):
        async with running_harness(devices=kind, dtype="float32") as (harness, _):
            await load(harness, checkpoint)
            found.append((await harness.embed(request)).vectors)
    for there, here in zip(*found, strict=True):
        assert there == pytest.approx(here, abs=1e-4)


async def test_a_killed_worker_gives_its_memory_back_and_returns(tiny_llama, devices):
    async with running_harness(devices=devices) as (harness, host):
        await load(harness, tiny_llama)
        events = harness.generate(ask("long", max_tokens=2000))
        await anext(events)
        await anext(events)
        os.kill(harness._workers[0].pid, signal.SIGKILL)
        assert isinstance([event async for event in events][-1], Failed)
        await host.until(lambda: host.device_states[-1:] == ["ok"] and len(host.model_states) > 1)
        assert (await answer(harness, ask("hi", "b")))[1].usage.completion_tokens
        held = used_mb()
    assert used_mb() < held


needs_two = pytest.mark.skipif(HAS_GPU.stdout.count(b"UUID") < 2, reason="needs two NVIDIA GPUs")


@needs_two
async def test_a_model_split_over_two_gpus_sees_as_on_one(tmp_path):
    found, checkpoint = discovery.discover().devices[:2], save_tiny_seeing(tmp_path)
    async with running_neuron(checkpoint, found, max_sequences=8, dtype="float32") as node:
        await check_pictures(node)


@needs_two
async def test_a_rank_that_dies_or_hangs_ends_the_other_and_both_come_back(tiny_llama, monkeypatch):
    monkeypatch.setattr("cortex.neuron.workers.PING_S", 0.5)
    found = discovery.discover().devices[:2]
    async with running_neuron(tiny_llama, found, max_sequences=8, watchdog_s=20.0) as node:
        await node.post("/models/load", model_id="both", tensor_parallel=2)
        wanted = await said(node, "both", **SAID)
        for fault in (signal.SIGKILL, signal.SIGSTOP):
            async with long_answer(node) as response:
                os.kill(workers_of(node)[1].pid, fault)  # rank 0 waits for it, on its GPU
                assert b"upstream_died" in await response.content.read()
            await until(lambda: node.neuron.models.entry("both").status == "loaded", 150)
            assert await said(node, "both", **SAID) == wanted
