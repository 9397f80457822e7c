"""Where the client speaks Ollama's API and the server does not, and the other way round."""

from __future__ import annotations

from contextlib import asynccontextmanager

import ollama
import openai
import pytest

import cortex_dialect_ollama
from cortex.config.schema import UpstreamEntry
from cortex.fleet.model import ModelSpec
from cortex.testing import FakeNeuron
from cortex_dialect_ollama.chat import OllamaChat
from tests.clients import scripted, turns
from tests.gateway.running import running
from tests.neuron.serving import serving

TOLD = "".join(turns.HELLO)
SCRIPT = {"scripted": {"script": "tests.clients.turns:SCRIPT"}}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def hi(text: str = "hello") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@asynccontextmanager
async def before_a_plain_neuron():
    """Yield a client of a gateway that has the plugin; its neuron has not."""
    model = ModelSpec(id="scripted", harness="scripted")
    async with (
        serving(plugins=[scripted], harnesses=["scripted"], options=SCRIPT) as neuron,
        running(neuron.url, models=[model], plugins=[cortex_dialect_ollama]) as gateway,
        ollama.AsyncClient(gateway.url, timeout=10) as client,
    ):
        yield client


async def test_a_node_that_dies_in_the_middle_ends_a_stream_with_an_error():
    async with FakeNeuron(["m"], dialects={"ollama-chat": OllamaChat()}) as node:
        node.ending = "midway"
        async with (
            running(node, plugins=[cortex_dialect_ollama]) as gateway,
            ollama.AsyncClient(gateway.url, timeout=10) as client,
        ):
            stream = await client.chat("m", hi(), stream=True)
            words = [await anext(stream) for _ in node.answer.split()]
            with pytest.raises(ollama.ResponseError, match="died while it answered"):
                await anext(stream)

    assert "".join(part.message.content for part in words) == node.answer
    assert not any(part.done for part in words)


@asynccontextmanager
async def before_an_ollama():
    """Yield a client of a gateway whose one upstream is asked as an Ollama is."""
    plugins = [scripted, cortex_dialect_ollama]
    async with serving(plugins=plugins, harnesses=["scripted"], options=SCRIPT) as server:
        await server.post("/models/load", model_id="scripted", harness="scripted")
        upstream = UpstreamEntry(name="box", endpoint=server.url, dialects=("ollama-chat",))
        async with (
            running(models=(), plugins=[cortex_dialect_ollama], upstreams=[upstream]) as gateway,
            openai.AsyncOpenAI(
                base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=10
            ) as client,
        ):
            yield client


@pytest.mark.parametrize("stream", [False, True])
async def test_a_neuron_without_the_plugin_answers_a_chat(stream):
    async with before_a_plain_neuron() as client:
        answer = await client.chat("scripted", hi("weather please"), tools=[TOOL], stream=stream)
        parts = [part async for part in answer] if stream else [answer]

    said = [part.message for part in parts]
    assert "".join(message.content for message in said) == "Let me look."
    assert "".join(message.thinking or "" for message in said) == "".join(turns.THOUGHTS)
    calls = [call.function for message in said for call in message.tool_calls or ()]
    assert [call.arguments for call in calls] == [{"city": "Paris"}, {"city": "Oslo"}]
    assert (parts[-1].done_reason, parts[-1].prompt_eval_count > 0) == ("stop", True)


async def test_a_neuron_without_the_plugin_answers_a_generation():
    async with before_a_plain_neuron() as client:
        answer = await client.generate("scripted", "hello")

    assert answer.response == TOLD


@pytest.mark.parametrize("stream", [False, True])
async def test_a_neuron_without_the_plugin_loads_a_model(stream):
    async with before_a_plain_neuron() as client:
        answer = await client.chat("scripted", [], stream=stream)
        [answer] = [part async for part in answer] if stream else [answer]
        running_models = (await client.ps()).models

    assert answer.done_reason == "load"
    assert [model.model for model in running_models] == ["scripted"]


async def test_errors_of_a_neuron_without_the_plugin_are_ollamas():
    async with before_a_plain_neuron() as client:
        with pytest.raises(ollama.ResponseError) as caught:
            await client.chat("scripted", hi("busy"))
        assert (caught.value.status_code, caught.value.error) == (429, "too many wait")
        with pytest.raises(ollama.ResponseError) as caught:
            [part async for part in await client.chat("scripted", hi("die"), stream=True)]
        assert "the worker died" in caught.value.error


@pytest.mark.parametrize("stream", [False, True])
async def test_an_ollama_answers_a_client_of_openai(stream):
    async with before_an_ollama() as client:
        answer = await client.chat.completions.create(
            model="scripted",
            messages=hi("weather please"),
            tools=[TOOL],
            stream=stream,
            **({"stream_options": {"include_usage": True}} if stream else {}),
        )
        chunks = [chunk async for chunk in answer] if stream else [answer]

    calls = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        for call in (choice.delta if stream else choice.message).tool_calls or ():
            at = call.index if stream else len(calls)
            calls[at] = calls.get(at, "") + call.function.arguments
    assert list(calls.values()) == ['{"city": "Paris"}', '{"city": "Oslo"}']
    finishes = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert finishes == ["tool_calls"]
    assert chunks[-1].usage.prompt_tokens > 0


async def test_errors_of_an_ollama_are_openais():
    async with before_an_ollama() as client:
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="scripted", messages=hi("busy"))
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(
                model="scripted", messages=hi(), tools=[TOOL], tool_choice="required"
            )
        assert caught.value.param == "tool_choice"
        stream = await client.chat.completions.create(
            model="scripted", messages=hi("die"), stream=True
        )
        with pytest.raises(openai.APIError, match="the worker died"):
            [chunk async for chunk in stream]
