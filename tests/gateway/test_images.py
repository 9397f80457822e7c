"""Images through a gateway: untouched, and a neuron is told who could see them."""

from __future__ import annotations

import attrs
import pytest

from cortex.config.schema import AuthSection, Catalogue
from cortex.errors import VisionUnsupported
from cortex.fleet.model import ModelSpec
from cortex.testing import FakeNeuron, until
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


def with_image(dialect):
    if dialect == "messages":
        source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
        content, more = [{"type": "image", "source": source}], {"max_tokens": 9}
    else:
        content, more = [IMAGE], {}
    return {"model": "m", "messages": [{"role": "user", "content": content}], **more}


@pytest.mark.parametrize(
    ("path", "stream"),
    [("chat/completions", False), ("chat/completions", True), ("messages", False)],
)
async def test_a_model_known_to_see_no_images_is_not_loaded_to_refuse_one(path, stream):
    node = seeing(FakeNeuron(["m", "v"]), "v")
    node.models["m"] = attrs.evolve(node.models["m"], capabilities=("text", "tools"))
    async with node, running(node) as gateway:
        names = gateway.gateway.names
        await until(lambda: names.abilities == {"m": ("text", "tools"), "v": ("text", "vision")})
        await gateway.post("/api/v1/models/m/unload")
        [row] = [r for r in (await gateway.get("/v1/models"))["data"] if r["id"] == "m"]
        assert (row["loaded"], row["capabilities"]) == (False, ["text", "tools"])

        url, body = f"{gateway.url}/v1/{path}", {**with_image(path), "stream": stream}
        async with gateway.client.post(url, json=body) as response:
            said = (await response.json())["error"]
            assert response.status == 400
        assert said["message"] == "model 'm' sees no images (these do: v)"
        assert said.get("param") in (None, "messages[0].content[0]")
        assert node.counts["load"] == 0
        assert gateway.records[-1].status == 400

        await gateway.ask(content="the word image is no image")
        assert node.counts["load"] == 1


async def test_what_may_see_is_loaded_to_tell():
    node = seeing(FakeNeuron(["m"]), "m")
    async with node, running(node) as gateway:
        await until(lambda: "m" in gateway.gateway.names.abilities)
        await gateway.post("/api/v1/models/m/unload")
        messages = [{"role": "user", "content": [IMAGE]}]
        await gateway.ask(messages=messages)
        assert node.counts["load"] == 1
        assert gateway.gateway.names.is_blind("unheard of") is False


async def test_what_a_model_can_do_is_forgotten_where_it_is_made_otherwise():
    node = FakeNeuron(["m"])
    node.models["m"] = attrs.evolve(node.models["m"], capabilities=("text",))
    async with node, running(node) as gateway:
        names = gateway.gateway.names
        await until(lambda: "m" in names.abilities)
        await gateway.post("/api/v1/models/m/unload")
        assert names.is_blind("m")
        config, _ = gateway.gateway.current()
        other = Catalogue(models=(ModelSpec(id="m", source="file:/srv/another"),))
        await gateway.gateway.adopt(config, other)
        assert not names.is_blind("m")
