"""The openai SDK against a neuron with harness echo, and through a gateway; and its types."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from pathlib import Path

import openai
import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from cortex.fleet.model import ModelSpec
from tests.gateway.running import running
from tests.neuron.serving import serving

TEXT = "grün ist\n\ndata: alle Theorie"
SAID = " ".join(TEXT.split())
ASK = {"model": "m", "messages": [{"role": "user", "content": TEXT}]}


@asynccontextmanager
async def sdk(through: str):
    async with serving() as node:
        await node.load("m")
        if through == "neuron":
            async with client(node.url) as found:
                yield found
        else:
            async with running(node.url, models=[ModelSpec(id="m")]) as gateway:
                async with client(gateway.url) as found:
                    yield found


def client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=10)


@pytest.fixture(params=["neuron", "gateway"])
def through(request) -> str:
    return request.param


async def test_a_whole_answer(through):
    async with sdk(through) as ai:
        answer = await ai.chat.completions.create(**ASK)

    assert answer.choices[0].message.content == SAID
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 5)
    assert answer.usage.total_tokens == 10
    assert answer._request_id


async def test_a_stream(through):
    async with sdk(through) as ai:
        stream = await ai.chat.completions.create(
            **ASK, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]

    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == SAID
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 5
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_limit_is_a_finish_reason(through):
    async with sdk(through) as ai:
        answer = await ai.chat.completions.create(**ASK, max_completion_tokens=2)

    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (
        "grün ist",
        "length",
    )


async def test_the_models(through):
    async with sdk(through) as ai:
        assert [model.id for model in (await ai.models.list()).data] == ["m"]
        model = await ai.models.retrieve("m")
        assert (model.id, model.object, model.owned_by) == ("m", "model", "cortex")
        with pytest.raises(openai.NotFoundError) as caught:
            await ai.models.retrieve("nobody")

    assert caught.value.code == "model_not_found"


async def test_an_unknown_model_is_not_found(through):
    async with sdk(through) as ai:
        with pytest.raises(openai.NotFoundError) as caught:
            await ai.chat.completions.create(**{**ASK, "model": "nobody"})

    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("wrong", "code", "param"),
    [
        ({"functions": [{"name": "f"}]}, "unsupported_parameter", "functions"),
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_value", "messages[0].content"),
        ({"messages": []}, "invalid_value", "messages"),
    ],
)
async def test_a_bad_request_names_the_parameter(through, wrong, code, param):
    async with sdk(through) as ai:
        with pytest.raises(openai.BadRequestError) as caught:
            await ai.chat.completions.create(**{**ASK, **wrong})

    assert (caught.value.code, caught.value.param) == (code, param)


@pytest.mark.parametrize("prompt", [["one two", "three"], [[1, 2], [3]]])
async def test_prompts_are_continued_in_parallel(through, prompt):
    async with sdk(through) as ai:
        whole = await ai.completions.create(model="m", prompt=prompt, echo=True, n=2)
        stream = await ai.completions.create(
            model="m", prompt=prompt, echo=True, stream=True, stream_options={"include_usage": True}
        )
        texts = ["", ""]
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.text

    words = ["one two", "three"] if isinstance(prompt[0], str) else ["1 2", "3"]
    assert texts == [word * 2 for word in words]
    assert [choice.text for choice in whole.choices] == [w * 2 for w in words for _ in range(2)]
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 6)
    assert chunk.usage.total_tokens == 6


async def test_a_model_without_embeddings_says_so(through):
    async with sdk(through) as ai:
        with pytest.raises(openai.BadRequestError) as caught:
            await ai.embeddings.create(model="m", input="one")

    assert caught.value.code == "unsupported_operation"


CASES = Path(__file__).parent / "cases"
BODIES = {
    "openai-chat": ChatCompletion,
    "openai-completions": Completion,
    "openai-embeddings": CreateEmbeddingResponse,
}
CHUNKS = {"openai-chat": ChatCompletionChunk, "openai-completions": Completion}


@pytest.mark.parametrize("dialect", BODIES)
def test_every_golden_body_is_of_the_sdk_s_type(dialect):
    cases = [json.loads(path.read_text()) for path in CASES.glob(f"{dialect}/*.json")]
    replies = [case["reply"] for case in cases if "reply" in case]

    assert replies
    for reply in replies:
        if any(isinstance(row.get("embedding"), str) for row in reply.get("data", ())):
            continue  # the SDK turns base64 into numbers itself
        BODIES[dialect].model_validate(reply)


@pytest.mark.parametrize("dialect", CHUNKS)
def test_every_golden_chunk_is_of_the_sdk_s_type(dialect):
    cases = [json.loads(path.read_text()) for path in CASES.glob(f"{dialect}/*.json")]
    events = [event for case in cases for event in case.get("stream", ())]
    chunks = [event.removeprefix("data: ") for event in events if '"choices"' in event]

    assert chunks
    for chunk in chunks:
        said = json.loads(chunk)
        for choice in said["choices"] if dialect == "openai-completions" else ():
            choice["finish_reason"] = choice["finish_reason"] or "stop"  # null is not in its type
        CHUNKS[dialect].model_validate(said)
