"""A whole neuron whose models are on servers: load, status, chat, count, unload, over HTTP."""

from __future__ import annotations

import json
from pathlib import Path

from harness_bench import FAKE_COMMAND, GIB, WEIGHTS

import cortex_harness_vllm
from cortex.fleet.node import Device
from cortex.testing import until
from tests.neuron.serving import serving

SMALL = Device(index=0, kind="cuda", name="small", vram_total_mb=6000, vram_free_mb=5000)
RAY = ["--pipeline-parallel-size", "4", "--distributed-executor-backend", "ray"]


class Weights:
    """A source of weights that are said to be there."""

    def __init__(self, size_bytes: int = WEIGHTS.size_bytes) -> None:
        self._size_bytes = size_bytes

    def fetch(self, spec, report, *, text_only=False):
        return type(WEIGHTS)(path=WEIGHTS.path, format="safetensors", size_bytes=self._size_bytes)


def neuron(folder: Path, monkeypatch, source: Weights, **models: object):
    fake = json.dumps({"record": str(folder / "record")})
    options = {"command": [*FAKE_COMMAND], "env": {"FAKE": fake}, "models": models, "stop_s": 2.0}
    monkeypatch.setattr("cortex.neuron.discovery.read", tuple)
    return serving(
        plugins=[cortex_harness_vllm],
        harnesses=["vllm"],
        options={"vllm": options},
        devices=[SMALL],
        source=source,
    )


async def test_a_neuron_serves_a_model_of_another_server(tmp_path, monkeypatch):
    async with neuron(tmp_path, monkeypatch, Weights()) as served:
        async with served.events() as events:
            said = await served.post("/models/load", model_id="org/m", harness="vllm")
            assert said["vram_used_mb"] == 5632
            loading = await events.until("load_progress", stage="reading weights", progress=0.4)
            assert loading["harness"] == "vllm"
        (model,) = await served.get("/models")
        assert model["limit"] == {"context": 512, "output": 512}
        answer = await served.chat("org/m", "one two three")
        assert answer["choices"][0]["message"]["content"] == "one two three"
        assert answer["usage"]["total_tokens"] == 7
        counted = await served.post(
            "/v1/messages/count_tokens",
            model="org/m",
            messages=[{"role": "user", "content": "one two"}],
        )
        assert counted == {"input_tokens": 3}
        async with served.streaming("org/m", "die now") as response:
            assert b"upstream_died" in await response.read()
        await until(lambda: served.neuron.models.list()[0].status == "recovering", 15)
        await until(lambda: served.neuron.models.list()[0].status == "loaded", 15)
        (health,) = (await served.get("/health"))["models"]
        assert health["body"].startswith("vllm: http://")
        await served.post("/models/unload", model_id="org/m")
        assert await served.get("/models") == []


async def test_of_a_model_over_several_hosts_only_its_share_has_to_fit(tmp_path, monkeypatch):
    source = Weights(12 * GIB)
    spread = {"org/wide": {"args": RAY}}
    async with neuron(tmp_path, monkeypatch, source, **spread) as served:
        refused = await served.post("/models/load", 507, model_id="org/m", harness="vllm")
        assert refused["error"]["needed_mb"] == 12 * 1024
        await served.post("/models/load", model_id="org/wide", harness="vllm")
        await served.post("/models/unload", model_id="org/wide")
