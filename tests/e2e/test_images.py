"""Pictures through a gateway and a neuron to a small model that sees, with clients' own SDKs."""

from __future__ import annotations

import asyncio
import base64
import runpy
import sys
from pathlib import Path

import anthropic
import attrs
import openai
import pytest
import pytest_asyncio

from cortex.fleet.model import ModelSpec
from tests.gateway.running import running
from tests.neuron.engine.conftest import running_neuron
from tests.neuron.engine.tiny import save_tiny_seeing
from tests.neuron.images.drawn import data_url, drawn, encoded

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.xdist_group("torch"),
    pytest.mark.asyncio(loop_scope="module"),
]
LOOK = Path(__file__).parents[2] / "examples" / "look.py"
ONE, OTHER = encoded(drawn(64, 48)), encoded(drawn(64, 48).rotate(180))
WIDE = encoded(drawn(128, 48))
TOKENS = 48  # of the first two; the third has twice as many
LENGTH = 12


@attrs.frozen
class Clients:
    """Of a gateway with the one model `tiny`."""

    url: str
    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic

    async def chat(self, *parts, **more):
        """Return the likeliest tokens, how likely each was, and how many the prompt had."""
        content = [{"type": "text", "text": "what is it?"}, *parts]
        answer = await self.openai.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": content}],
            max_tokens=LENGTH,
            temperature=0,
            logprobs=True,
            **more,
        )
        (choice,) = answer.choices
        likely = [token.logprob for token in choice.logprobs.content]
        return choice.message.content, likely, answer.usage.prompt_tokens

    async def respond(self, given):
        """Return what a response says, and how many tokens its input had."""
        answer = await self.openai.responses.create(
            model="tiny", input=given, max_output_tokens=LENGTH, temperature=0, store=False
        )
        return answer.output_text, answer.usage.input_tokens

    async def message(self, *messages):
        """Return what a message says, how many tokens its prompt had, and as many as counted."""
        asked = {"model": "tiny", "messages": list(messages)}
        answer = await self.anthropic.messages.create(
            **asked, max_tokens=LENGTH, extra_body={"temperature": 0}
        )
        counted = await self.anthropic.messages.count_tokens(**asked)
        usage = answer.usage
        tokens = usage.input_tokens + usage.cache_read_input_tokens
        return "".join(block.text for block in answer.content), tokens, counted.input_tokens


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clients(tmp_path_factory):
    checkpoint = await asyncio.to_thread(save_tiny_seeing, tmp_path_factory.mktemp("seeing"))
    model = ModelSpec(id="tiny", harness="torch")
    async with (
        running_neuron(checkpoint) as node,
        running(node.url, models=(model,), max_wait_s=120) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0) as ours,
        anthropic.AsyncAnthropic(base_url=gateway.url, api_key="any", max_retries=0) as theirs,
    ):
        await node.post("/models/load", model_id="tiny")
        yield Clients(gateway.url, ours, theirs)


def shown(data):
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


def block(data):
    source = {
        "type": "base64",
        "media_type": "image/png",
        "data": base64.b64encode(data).decode(),
    }
    return {"type": "image", "source": source}


async def test_chat_completions_say_what_is_seen(clients):
    (text, likely, tokens), (another, others, same), (_, _, wide) = [
        await clients.chat(shown(data)) for data in (ONE, OTHER, WIDE)
    ]
    assert tokens == same == wide - TOKENS
    assert text != another
    assert max(abs(a - b) for a, b in zip(likely, others, strict=False)) > 1e-3
    again = await clients.chat(shown(ONE))
    assert again[1] == pytest.approx(likely, abs=1e-3)
    _, blind, without = await clients.chat()
    assert tokens == without + TOKENS + 2  # what stands around a picture
    assert max(abs(a - b) for a, b in zip(likely, blind, strict=False)) > 1e-3
    both = (await clients.chat(shown(ONE), shown(WIDE)))[2]
    assert both == without + 3 * TOKENS + 4


async def test_responses_see_the_same(clients):
    def given(data):
        content = [
            {"type": "input_text", "text": "what is it?"},
            {"type": "input_image", "image_url": data_url(data), "detail": "auto"},
        ]
        return [{"role": "user", "content": content}]

    for data in (ONE, OTHER):
        text, _, tokens = await clients.chat(shown(data))
        assert await clients.respond(given(data)) == (text, tokens)


async def test_messages_see_the_same_and_count_it(clients):
    for data in (ONE, WIDE):
        text, _, tokens = await clients.chat(shown(data))
        content = [{"type": "text", "text": "what is it?"}, block(data)]
        said = await clients.message({"role": "user", "content": content})
        assert said == (text, tokens, tokens)


async def test_an_image_in_the_result_of_a_tool_is_seen(clients):
    def talk(*content):
        use = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": list(content)}
        return (
            {"role": "user", "content": "look"},
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [result]},
        )

    text, tokens, counted = await clients.message(*talk(block(ONE)))
    other, more, _ = await clients.message(*talk(block(WIDE)))
    assert (more, counted) == (tokens + TOKENS, tokens)
    assert text != other
    _, without, _ = await clients.message(*talk({"type": "text", "text": ""}))
    assert tokens == without + TOKENS + 2


async def test_who_sees_is_listed_so(clients):
    (model,) = [model async for model in clients.openai.models.list()]
    assert "vision" in model.capabilities


async def test_what_is_no_picture_is_an_error_of_the_sdk(clients):
    with pytest.raises(openai.BadRequestError, match="the image is broken") as caught:
        await clients.chat(shown(ONE[:60]))
    assert caught.value.code == "invalid_image"
    with pytest.raises(anthropic.BadRequestError, match="the image is broken"):
        await clients.message({"role": "user", "content": [block(ONE[:60])]})


async def test_the_example_prints_what_is_seen(clients, tmp_path, monkeypatch, capsys):
    picture = tmp_path / "picture.png"
    picture.write_bytes(ONE)
    command = [str(LOOK), str(picture), "what is it?", "--model", "tiny"]
    monkeypatch.setattr(sys, "argv", [*command, "--url", f"{clients.url}/v1"])
    await asyncio.to_thread(runpy.run_path, str(LOOK), run_name="__main__")
    assert capsys.readouterr().out.strip()
