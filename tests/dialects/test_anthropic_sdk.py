"""The anthropic SDK itself, against a neuron, and through a gateway."""

from __future__ import annotations

from contextlib import asynccontextmanager

import anthropic
import pytest

from cortex import web
from cortex.errors import (
    CortexError,
    DeviceUnavailable,
    InvalidRequest,
    ModelLoading,
    PermissionDenied,
    QueueFull,
    ToolsUnsupported,
    UpstreamDied,
)
from cortex.fleet.model import ModelSpec
from cortex.testing import FakeNeuron
from tests.clients import scripted
from tests.gateway.running import running
from tests.neuron.serving import serving

TEXT = "grün ist\n\ndata: alle Theorie"
SAID = " ".join(TEXT.split())
ASK = {"model": "m", "max_tokens": 64, "messages": [{"role": "user", "content": TEXT}]}
SCRIPT = {
    "invalid": [InvalidRequest("no such thing")],
    "forbidden": [PermissionDenied("not yours")],
    "toolless": [ToolsUnsupported("no tools in the template")],
    "busy": [QueueFull("too many wait", retry_after_s=7)],
    "bug": [CortexError("a bug")],
    "dead": [UpstreamDied("the worker died")],
    "recovering": [DeviceUnavailable("the worker restarts", retry_after_s=3)],
    "loading": [ModelLoading("it is loading", retry_after_s=9)],
    "midway": [scripted.break_off("Half an ", error=UpstreamDied("the worker died"))],
    "midway-load": [scripted.break_off(error=DeviceUnavailable("the worker restarts"))],
    "halt": [scripted.say("up to", stop_string="END", cached=1)],
}


@asynccontextmanager
async def sdk(through: str, *, harness: str = "echo", context: int | None = None):
    options = {"scripted": {"script": f"{__name__}:SCRIPT"}}
    async with serving(plugins=[scripted], harnesses=[harness], options=options) as node:
        spec = ModelSpec(id="m", harness=harness, context=context)
        await node.post("/models/load", model_id="m", harness=harness, context=context)
        if through == "neuron":
            async with client(node.url) as found:
                yield found
        else:
            async with running(node.url, models=[spec], aliases={"nick": "m"}) as gateway:
                async with client(gateway.url) as found:
                    yield found


def client(url: str, key: str = "none") -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0, timeout=10)


def ask(text: str) -> dict:
    return {**ASK, "messages": [{"role": "user", "content": text}]}


@pytest.fixture(params=["neuron", "gateway"])
def through(request) -> str:
    return request.param


async def test_a_whole_answer(through):
    async with sdk(through) as ai:
        answer = await ai.messages.create(**ASK)

    [block] = answer.content
    assert (block.type, block.text) == ("text", SAID)
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "m")
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (5, 5)
    assert answer.id == f"msg_{answer._request_id}"


async def test_a_stream(through):
    async with sdk(through) as ai, ai.messages.stream(**ASK) as stream:
        kinds, text = [], ""
        async for event in stream:
            kinds.append(event.type)
            text += event.text if event.type == "text" else ""
        answer = await stream.get_final_message()

    assert text == answer.content[0].text == SAID
    deltas = ["content_block_delta", "text"] * 5
    assert kinds == [
        *("message_start", "content_block_start", *deltas, "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    assert (answer.stop_reason, answer.usage.output_tokens) == ("end_turn", 5)


async def test_instructions_and_blocks_reach_the_model(through):
    async with sdk(through) as ai:
        answer = await ai.messages.create(
            model="m",
            max_tokens=64,
            system=[{"type": "text", "text": "be", "cache_control": {"type": "ephemeral"}}],
            messages=[
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
                {"role": "user", "content": [{"type": "text", "text": t} for t in ("a", "b")]},
            ],
            metadata={"user_id": "u"},
        )

    assert answer.content[0].text == "a b"
    assert answer.usage.input_tokens == 5


async def test_a_limit_is_a_stop_reason(through):
    async with sdk(through) as ai:
        answer = await ai.messages.create(**{**ASK, "max_tokens": 2})

    assert (answer.content[0].text, answer.stop_reason) == ("grün ist", "max_tokens")


async def test_a_stop_sequence_is_named_and_cached_tokens_are_counted_apart(through):
    async with sdk(through, harness="scripted") as ai:
        whole = await ai.messages.create(**ask("halt now please"), stop_sequences=["END"])
        async with ai.messages.stream(**ask("halt now please"), stop_sequences=["END"]) as stream:
            streamed = await stream.get_final_message()

    for answer in (whole, streamed):
        assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "END")
        usage = answer.usage
        assert (usage.input_tokens, usage.cache_read_input_tokens) == (2, 1)
        assert usage.cache_creation_input_tokens == 0


async def test_tokens_are_counted(through):
    tools = [{"name": "f", "description": "six seven", "input_schema": {"type": "object"}}]
    messages = ASK["messages"]
    async with sdk(through, harness="scripted") as ai:
        bare = await ai.messages.count_tokens(model="m", messages=messages)
        full = await ai.messages.count_tokens(
            model="m", messages=messages, system="be brief", tools=tools
        )
        answer = await ai.beta.messages.count_tokens(model="m", messages=messages)

    assert bare.input_tokens == answer.input_tokens == 5
    assert full.input_tokens == 5 + 2 + 3


async def test_the_models(through):
    async with sdk(through) as ai:
        page = await ai.models.list()
        assert [model.id for model in page.data] == (
            ["m"] if through == "neuron" else ["m", "nick"]
        )
        model = await ai.models.retrieve("m")
        with pytest.raises(anthropic.NotFoundError) as caught:
            await ai.models.retrieve("nobody")

    assert (model.id, model.type, model.lifecycle) == ("m", "model", "active")
    assert model.created_at.tzinfo is not None
    assert model.max_input_tokens == 4096
    assert caught.value.body["error"]["type"] == "not_found_error"


async def test_all_pages_of_the_models_are_every_model_once():
    models = [ModelSpec(id=f"org/m{number}") for number in range(45)]
    async with FakeNeuron() as node, running(node, models=models) as gateway:
        async with client(gateway.url) as ai:
            listed = [model.id async for model in ai.models.list()]
            few = [model.id async for model in ai.models.list(limit=7)]
            model = await ai.models.retrieve("org/m7")

    assert sorted(listed) == sorted(few) == sorted(model.id for model in models)
    assert model.display_name == "org/m7"


async def test_a_model_is_asked_for_by_another_name_and_answers_to_it():
    async with sdk("gateway") as ai:
        answer = await ai.messages.create(**{**ASK, "model": "nick"})

    assert answer.model == "nick"


ERRORS = {
    "invalid": (anthropic.BadRequestError, 400, "invalid_request_error"),
    "forbidden": (anthropic.PermissionDeniedError, 403, "permission_error"),
    "toolless": (anthropic.UnprocessableEntityError, 422, "invalid_request_error"),
    "busy": (anthropic.RateLimitError, 429, "rate_limit_error"),
    "bug": (anthropic.InternalServerError, 500, "api_error"),
    "dead": (anthropic.InternalServerError, 500, "api_error"),
    "recovering": (anthropic.InternalServerError, 529, "overloaded_error"),
    "loading": (anthropic.InternalServerError, 529, "overloaded_error"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("word", ERRORS)
async def test_an_error_is_raised_as_its_class(through, word, stream):
    kind, status, said = ERRORS[word]
    async with sdk(through, harness="scripted") as ai:
        with pytest.raises(kind) as caught:
            await ai.messages.create(**ask(word), stream=stream)

    error = caught.value
    assert (error.status_code, error.body["error"]["type"]) == (status, said)
    assert error.body["error"]["message"] in str(SCRIPT[word])
    assert error.body["request_id"] == error.request_id
    wanted = {"busy": "7", "recovering": "3", "loading": "9"}.get(word)
    assert error.response.headers.get("retry-after") == wanted


@pytest.mark.parametrize("word", ["midway", "midway-load"])
async def test_a_stream_that_breaks_raises(through, word):
    async with sdk(through, harness="scripted") as ai:
        with pytest.raises(anthropic.APIStatusError) as caught:
            async with ai.messages.stream(**ask(word)) as stream:
                await stream.get_final_message()

    assert "the worker" in str(caught.value)


async def test_an_unknown_model_is_not_found(through):
    async with sdk(through) as ai:
        with pytest.raises(anthropic.NotFoundError) as caught:
            await ai.messages.create(**{**ASK, "model": "nobody"})
        with pytest.raises(anthropic.NotFoundError):
            await ai.messages.count_tokens(model="nobody", messages=ASK["messages"])

    assert caught.value.body["error"]["type"] == "not_found_error"
    assert "nobody" in caught.value.message


async def test_a_prompt_that_is_too_long_says_how_long(through):
    async with sdk(through, harness="scripted", context=4) as ai:
        with pytest.raises(anthropic.BadRequestError) as caught:
            await ai.messages.create(**ask("halt one two three four"))

    assert caught.value.body["error"] == {
        "type": "invalid_request_error",
        "message": "prompt is too long: 5 tokens > 4 maximum",
    }


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra_body": {"temperature": 3}}, "temperature"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": []}, "messages"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
    ],
)
async def test_a_bad_request_names_the_field(through, wrong, param):
    async with sdk(through) as ai:
        with pytest.raises(anthropic.BadRequestError) as caught:
            await ai.messages.create(**{**ASK, **wrong})

    assert caught.value.body["error"]["message"].startswith(param)


async def test_a_body_that_is_too_large_is_refused(through, monkeypatch):
    monkeypatch.setattr(web, "MAX_BODY_BYTES", 1000)
    async with sdk(through) as ai:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await ai.messages.create(**ask("x" * 2000))

    assert caught.value.status_code == 413
    assert caught.value.body["error"]["type"] == "request_too_large"


async def test_a_wrong_key_is_an_authentication_error():
    async with serving(token="secret") as node:
        await node.load("m")
        async with client(node.url, "wrong") as ai:
            with pytest.raises(anthropic.AuthenticationError) as caught:
                await ai.messages.create(**ASK)

    assert caught.value.body["error"]["type"] == "authentication_error"


async def test_no_node_is_an_overload_to_come_back_to():
    async with FakeNeuron() as node, running(node) as gateway:
        await node.stop()
        async with client(gateway.url) as ai:
            with pytest.raises(anthropic.InternalServerError) as caught:
                await ai.messages.create(**ASK)

    assert caught.value.status_code == 529
    assert int(caught.value.response.headers["retry-after"]) > 0


async def test_a_path_we_do_not_have_is_not_found_in_the_vendors_words(through):
    async with sdk(through) as ai:
        with pytest.raises(anthropic.NotFoundError) as caught:
            await ai.get("/v1/nothing", cast_to=object)
        with pytest.raises(anthropic.APIStatusError) as refused:
            await ai.get("/v1/messages", cast_to=object)

    assert caught.value.body["error"]["type"] == "not_found_error"
    assert (refused.value.status_code, refused.value.body["type"]) == (405, "error")
