"""Images through a whole neuron, in every dialect, to what the engine is asked."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random

import pytest
from PIL import Image

from cortex.resumption import Said, pack
from cortex.testing import until
from tests.neuron.images.drawn import data_url, drawn, encoded
from tests.neuron.seeing import CONTEXT, SIGHT, seeing_neuron

ANTHROPIC = {"anthropic-version": "2023-06-01"}
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
COUNT, SMALL = "/v1/messages/count_tokens", encoded(drawn(160, 96))
TOKENS = 15  # of it: 5 times 3
CALL = {"name": "look", "arguments": "{}"}


@pytest.fixture
async def neuron(monkeypatch, tmp_path):
    async with seeing_neuron(monkeypatch, tmp_path) as (node, worker):
        yield node, worker


def openai_image(data=SMALL, **more):
    return {"type": "image_url", "image_url": {"url": data_url(data), **more}}


def anthropic_image(data=SMALL, kind="image/png"):
    source = {"type": "base64", "media_type": kind, "data": base64.b64encode(data).decode()}
    return {"type": "image", "source": source}


def chat_body(*parts, **more):
    content = [{"type": "text", "text": "what?"}, *parts]
    return {"messages": [{"role": "user", "content": content}], **more}


def messages_body(*parts, **more):
    return {**chat_body(*parts, **more), "max_tokens": 4}


def responses_body(*parts):
    content = [{"type": "input_text", "text": "what?"}]
    content += [{"type": "input_image", "image_url": p["image_url"]["url"]} for p in parts]
    return {"input": [{"role": "user", "content": content}], "store": False}


def result_of_openai(*parts):
    call = {"id": "1", "type": "function", "function": CALL}
    return {
        "messages": [
            {"role": "user", "content": "look"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": list(parts)},
        ]
    }


def result_of_responses(*parts):
    images = [{"type": "input_image", "image_url": p["image_url"]["url"]} for p in parts]
    return {
        "input": [
            {"role": "user", "content": "look"},
            {"type": "function_call", "call_id": "1", **CALL},
            {"type": "function_call_output", "call_id": "1", "output": images},
        ],
        "store": False,
    }


def result_of_anthropic(*parts):
    use = {"type": "tool_use", "id": "1", "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": list(parts)}
    return {
        "max_tokens": 4,
        "messages": [
            {"role": "user", "content": "look"},
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [result]},
        ],
    }


def prompt_tokens(answer):
    usage = answer["usage"]
    return usage.get("prompt_tokens") or usage["input_tokens"]


@pytest.mark.parametrize(
    ("path", "body", "image"),
    [
        (CHAT, chat_body, openai_image),
        (RESPONSES, responses_body, openai_image),
        (MESSAGES, messages_body, anthropic_image),
        (CHAT, result_of_openai, openai_image),
        (RESPONSES, result_of_responses, openai_image),
        (MESSAGES, result_of_anthropic, anthropic_image),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_an_image_reaches_the_engine_and_counts(neuron, path, body, image):
    node, worker = neuron
    answer = await node.post(path, model="seeing", **body(image()))
    other = await node.post(path, model="seeing", **body(image(encoded(drawn(256, 256)))))
    first, second = worker.asked
    assert [(p.height, p.width) for p in first.pictures] == [(96, 160)]
    assert first.prompt.count(SIGHT.token) == TOKENS
    assert second.prompt.count(SIGHT.token) == 64
    assert (prompt_tokens(answer), prompt_tokens(other)) == (len(first.prompt), len(second.prompt))
    assert first.pictures[0].rgb == drawn(160, 96).tobytes()


async def test_tokens_are_counted_as_they_would_be_fed(neuron):
    node, worker = neuron
    body = {"model": "seeing", **messages_body(anthropic_image(), anthropic_image())}
    await node.post(MESSAGES, **body)
    counted = await node.post(COUNT, **body)
    assert counted["input_tokens"] == len(worker.asked[0].prompt) > 2 * TOKENS
    await node.post("/models/unload", model_id="seeing")
    await node.post("/models/tokenizer", model_id="seeing")
    assert await node.post(COUNT, **body) == counted


async def test_several_answers_see_the_same(neuron):
    node, worker = neuron
    answer = await node.post(CHAT, model="seeing", n=3, **chat_body(openai_image()))
    assert len(answer["choices"]) == len(worker.asked) == 3
    assert len({job.pictures[0] for job in worker.asked}) == 1
    assert prompt_tokens(answer) == len(worker.asked[0].prompt)


async def test_an_answer_another_node_began_goes_on_with_the_same_pictures(neuron):
    node, worker = neuron
    body = json.dumps({"model": "seeing", **chat_body(openai_image()), "stream": True}).encode()
    body, length = pack(body, Said(text="it is"))
    headers = {"x-cortex-begun": str(length)}
    async with node.client.post(node.url + CHAT, data=body, headers=headers) as response:
        assert response.status == 200
        assert b"[DONE]" in await response.read()
    await node.post(CHAT, model="seeing", **chat_body(openai_image()))
    resumed, fresh = worker.asked
    assert resumed.pictures == fresh.pictures
    assert resumed.prompt[: len(fresh.prompt)] == fresh.prompt
    assert len(resumed.prompt) == len(fresh.prompt) + len("it is")


async def test_low_detail_is_fewer_tokens(neuron):
    node, worker = neuron
    large = encoded(drawn(1024, 1024))
    await node.post(CHAT, model="seeing", **chat_body(openai_image(large, detail="high")))
    await node.post(CHAT, model="seeing", **chat_body(openai_image(large, detail="low")))
    assert [job.prompt.count(SIGHT.token) for job in worker.asked] == [1024, 256]


async def test_pictures_fill_the_context(neuron):
    node, worker = neuron
    large = encoded(drawn(1024, 1024))
    error = (await node.post(CHAT, 400, model="seeing", **chat_body(*[openai_image(large)] * 2)))[
        "error"
    ]
    assert (error["code"], error["context_tokens"]) == ("context_length_exceeded", CONTEXT)
    assert error["prompt_tokens"] > 2 * 1024
    assert not worker.asked
    said = await node.post(
        MESSAGES, 400, model="seeing", **messages_body(*[anthropic_image(large)] * 2)
    )
    assert said["error"]["message"].startswith("prompt is too long: ")


@pytest.mark.parametrize(
    ("path", "body", "image"),
    [
        (CHAT, chat_body, openai_image),
        (CHAT, result_of_openai, openai_image),
        (RESPONSES, responses_body, openai_image),
        (MESSAGES, messages_body, anthropic_image),
        (COUNT, messages_body, anthropic_image),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
@pytest.mark.parametrize("seeing", [None, "a, b"])
async def test_a_model_that_sees_none_says_so_and_which_do(neuron, path, body, image, seeing):
    node, worker = neuron
    headers = {"x-cortex-seeing": seeing} if seeing else {}
    request = {"model": "blind", **body(image())}
    async with node.client.post(node.url + path, json=request, headers=headers) as response:
        answer = await response.json()
    assert response.status == 400
    hint = " (these do: a, b)" if seeing else ""
    assert answer["error"]["message"] == f"model 'blind' sees no images{hint}"
    assert answer["error"]["type"] == "invalid_request_error"
    if image is openai_image:
        assert answer["error"]["code"] == "vision_unsupported"
        assert answer["error"]["param"].startswith("messages[")
    else:
        assert answer["type"] == "error"
    assert not worker.asked


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (anthropic_image(SMALL[:50]), "messages[0].content[1]: the image is broken"),
        (anthropic_image(SMALL, "image/jpeg"), "said to be image/jpeg, and is PNG"),
        (anthropic_image(SMALL, "image/svg+xml"), "image/svg+xml is not supported"),
        (
            {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/"}},
            "fetches no images",
        ),
    ],
    ids=range(4),
)
async def test_an_image_that_cannot_be_shown_is_a_400_of_the_dialect(neuron, part, words):
    node, worker = neuron
    answer = await node.post(MESSAGES, 400, model="seeing", **messages_body(part))
    assert answer["type"] == "error"
    assert words in answer["error"]["message"]
    assert not worker.asked


async def test_the_streets_of_this_host_are_closed_where_others_are_open(monkeypatch, tmp_path):
    async with seeing_neuron(monkeypatch, tmp_path, urls=True) as (node, worker):
        part = {"type": "image_url", "image_url": {"url": f"{node.url}/health"}}
        error = (await node.post(CHAT, 400, model="seeing", **chat_body(part)))["error"]
        assert (error["code"], error["param"]) == ("invalid_image", "messages[0].content[1]")
        assert "127.0.0.1 is no public address (only images at public" in error["message"]
        assert not worker.asked


async def test_who_sees_is_listed_so(neuron):
    node, _ = neuron
    models = {row["id"]: row["capabilities"] for row in await node.get("/models")}
    assert models == {"seeing": ["text", "vision", "tools"], "blind": ["text", "tools"]}
    listed = await node.get("/v1/models")
    assert {row["id"]: row["capabilities"] for row in listed["data"]} == models


async def test_an_image_of_several_megabytes_comes_through(neuron):
    node, worker = neuron
    noise = Image.frombytes("RGB", (1600, 1600), random.Random(0).randbytes(3 * 1600 * 1600))
    data = encoded(noise, compress_level=0)
    assert len(data) > 7 << 20
    body = json.dumps({"model": "seeing", **chat_body(openai_image(data))}).encode()
    async with node.client.post(node.url + CHAT, data=io.BytesIO(body)) as response:
        assert response.status == 200, await response.read()
    assert [(p.height, p.width) for p in worker.asked[0].pictures] == [(1024, 1024)]


async def test_pictures_take_room_until_their_answer_begins(monkeypatch, tmp_path):
    body = chat_body(openai_image(encoded(drawn(1024, 1024))))  # 3 MiB, which is all there is
    async with seeing_neuron(monkeypatch, tmp_path, max_waiting_mb=1) as (node, worker):
        room = node.neuron.models.harnesses["torch"]._gallery._room
        worker.may_begin.clear()
        worker.may_end.clear()
        one, other = [
            asyncio.create_task(node.post(CHAT, model="seeing", **body)) for _ in range(2)
        ]
        await until(lambda: len(worker.asked) == 1 and len(room._line) == 1)
        text = asyncio.create_task(node.chat("seeing"))
        await until(lambda: len(worker.asked) == 2)  # who brings none waits for none

        worker.may_begin.set()
        await until(lambda: len(worker.asked) == 3 and room.free == 1 << 20)
        assert not any(task.done() for task in (one, other))
        worker.may_end.set()
        answers = await asyncio.gather(one, other, text)
    assert [answer["choices"][0]["finish_reason"] for answer in answers] == ["stop"] * 3
