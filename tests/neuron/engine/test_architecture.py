"""What the engine cannot run is refused before its weights are fetched."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from time import perf_counter

import attrs
import huggingface_hub
import pytest

from cortex.errors import RepoFetchFailed, UnsupportedArchitecture
from cortex.fleet.model import ModelSpec
from cortex.sources.hf import HfOptions, HfSource
from tests.neuron.engine.conftest import CPU
from tests.neuron.serving import serving
from tests.sources.hub import Hub

pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("torch")]
WEIGHTS = bytes(4 << 20)
THREE = {
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "hidden_size": 48,
    "intermediate_size": 96,
}


@pytest.fixture
def hub(tiny_llama):
    whole = {file.name: file.read_bytes() for file in tiny_llama.path.iterdir()}

    def of_type(kind, **more):
        config = json.loads(whole["config.json"]) | {"model_type": kind} | more
        return {**whole, "config.json": json.dumps(config).encode(), "model.safetensors": WEIGHTS}

    server = Hub()
    server.repos = {
        "o/whole": whole,
        "o/vision": of_type("resnet"),
        "o/new": of_type("llama99", auto_map={"AutoConfig": "configuration.Config"}),
        "o/encoder": of_type("t5", architectures=["T5EncoderModel"], is_encoder_decoder=True),
        "o/bare": {"model.safetensors": WEIGHTS, "tokenizer.json": whole["tokenizer.json"]},
        "o/gemma": of_type("gemma2"),
        "o/gelu": of_type("llama", hidden_act="gelu"),
        "o/three": of_type("llama", **THREE),
        "o/damaged": {**whole, "config.json": b"{", "model.safetensors": WEIGHTS},
    }
    yield server
    huggingface_hub.close_session()
    server.stop()


@asynccontextmanager
async def running(hub, folder, devices=CPU):
    source = HfSource(HfOptions(endpoint=hub.endpoint, cache_dir=str(folder)), folder)
    options = {"torch": {"threads": 1}}
    async with serving(
        harnesses=("torch",), options=options, devices=devices, source=source
    ) as node:
        yield node


def asked_for_weights(hub):
    return [name for name, _ in hub.ranges if name.endswith(".safetensors")]


async def test_a_model_of_a_strange_kind_is_refused_and_its_weights_are_not_asked_for(
    hub, tmp_path
):
    async def refused(repo, code):
        answer = await node.post("/models/load", 422, model_id=repo, harness="torch")
        assert answer["error"]["code"] == code
        assert asked_for_weights(hub) == []
        return answer["error"]

    async with running(hub, tmp_path) as node:
        for repo, kind in (("o/vision", "resnet"), ("o/new", "llama99"), ("o/encoder", "t5")):
            error = await refused(repo, "unsupported_architecture")
            assert error["model_type"] == kind
            assert ("bert" if repo == "o/encoder" else "llama") in error["supported"]
            assert kind in error["message"]
        await refused("o/damaged", "repo_fetch_failed")
        await refused("o/bare", "empty_repo")

        await node.post("/models/load", model_id="o/whole", harness="torch")
        assert asked_for_weights(hub) == ["model.safetensors"]
        listed = {model["id"]: model["status"] for model in await node.get("/models")}
        assert listed["o/whole"] == "loaded"
        assert listed["o/vision"] == "failed"


async def test_a_model_that_cannot_be_split_is_refused_and_its_weights_are_not_asked_for(
    hub, tmp_path
):
    two = (*CPU, attrs.evolve(CPU[0], index=1))
    async with running(hub, tmp_path, two) as node:
        for repo, why in (
            ("o/gemma", "models of type 'gemma2' cannot be split over devices"),
            ("o/gelu", "its activation is not silu"),
            ("o/three", "over 2 devices: it has 3 heads of keys; it can be over 3, 6; else"),
            ("o/encoder", "the engine cannot run models of type 't5'"),
        ):
            answer = await node.post("/models/load", 422, model_id=repo, tensor_parallel=2)
            assert answer["error"]["code"] == "unsupported_architecture"
            assert why in answer["error"]["message"]
            if repo != "o/encoder":
                assert (
                    "run it on one device, or with the harness vllm" in answer["error"]["message"]
                )
            assert asked_for_weights(hub) == []

        await node.post("/models/load", model_id="o/whole", tensor_parallel=2)
        assert asked_for_weights(hub) == ["model.safetensors"]


async def test_what_is_cached_is_not_looked_at_and_without_a_hub_too(hub, tmp_path):
    source = HfSource(HfOptions(endpoint=hub.endpoint, cache_dir=str(tmp_path)), tmp_path)
    source.fetch(ModelSpec(id="o/vision"), lambda _: None)
    told = []
    began = perf_counter()
    source.fetch(ModelSpec(id="o/vision"), told.append)
    print(f"\na fetch of what is cached took {1e3 * (perf_counter() - began):.1f} ms")
    hub.stop()
    source.fetch(ModelSpec(id="o/vision"), told.append)
    assert told
    assert not any(progress.text for progress in told)


async def test_the_engine_itself_says_the_same(tmp_path):
    from cortex.neuron.engine import architecture

    (tmp_path / "config.json").write_text('{"model_type": "llama99"}')
    with pytest.raises(UnsupportedArchitecture, match="llama99"):
        architecture.check(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RepoFetchFailed) as caught:
        architecture.check(str(tmp_path))
    assert caught.value.code == "repo_fetch_failed"
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    architecture.check(str(tmp_path))
