"""Images through a gateway: untouched, and a neuron is told who could see them."""

from __future__ import annotations

import attrs
import pytest

from cortex.config.schema import AuthSection
from cortex.errors import VisionUnsupported
from cortex.fleet.model import ModelSpec
from cortex.testing import FakeNeuron
from tests.gateway.running import running
from tests.gateway.test_auth import key, keys

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def seeing(node, *models):
    for model in models:
        node.models[model] = attrs.evolve(node.models[model], capabilities=("text", "vision"))
    return node


@pytest.mark.parametrize(
    ("model", "told"),
    [("m", "v, w"), ("small", "v, w"), ("v", None)],
)
async def test_a_neuron_is_told_which_models_see_where_its_own_may_not(model, told):
    here, there = seeing(FakeNeuron(["m", "v"]), "v"), seeing(FakeNeuron(["w"], name="b"), "w")
    async with here, there, running(here, there, aliases={"small": "m"}) as gateway:
        await gateway.ask(model)
        assert here.headers[-1].get("x-cortex-seeing") == told


async def test_a_neuron_is_told_of_no_model_the_key_may_not_use_and_of_none_where_none_sees():
    auth = keys(key("zed", models=("m", "w")))
    async with seeing(FakeNeuron(["m", "v", "w"]), "v", "w") as node:
        async with running(node, auth=auth) as gateway:
            await gateway.ask("m", key="secret of zed")
            assert node.headers[-1]["x-cortex-seeing"] == "w"
    async with FakeNeuron(["m"]) as node, running(node, auth=AuthSection()) as gateway:
        await gateway.ask("m")
        assert "x-cortex-seeing" not in node.headers[-1]


async def test_what_a_client_says_of_it_goes_nowhere():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        headers = {"x-cortex-seeing": "none"}
        body = {"model": "m", "messages": [{"role": "user", "content": [IMAGE]}]}
        url = f"{gateway.url}/v1/chat/completions"
        async with gateway.client.post(url, json=body, headers=headers) as response:
            assert response.status == 200
        assert "x-cortex-seeing" not in node.headers[-1]
        assert IMAGE["image_url"]["url"].encode() in node.bodies[-1]


async def test_that_a_model_sees_no_images_is_told_as_the_neuron_says_it():
    async with FakeNeuron(["m"]) as node, running(node) as gateway:
        node.refusal = VisionUnsupported("model 'm' sees no images", hint="these do: v")
        said = await gateway.refused(400, "vision_unsupported")
        assert said["message"] == "model 'm' sees no images (these do: v)"
        assert node.counts["chat"] == 1


async def test_who_sees_is_listed_so_also_under_its_aliases():
    node = seeing(FakeNeuron(["m", "v"]), "v")
    models = (ModelSpec(id="m"), ModelSpec(id="v"))
    async with node, running(node, models=models, aliases={"eye": "v"}) as gateway:
        rows = (await gateway.get("/v1/models"))["data"]
    assert {row["id"]: row["capabilities"] for row in rows} == {
        "m": [],
        "v": ["text", "vision"],
        "eye": ["text", "vision"],
    }
