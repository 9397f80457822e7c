"""pydantic-ai, over each of the three dialects: what it asks for differs from the bare SDKs'."""

from __future__ import annotations

import anthropic
import openai
import pydantic
import pytest
from pydantic_ai import Agent, BinaryContent, ModelHTTPError
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from cortex.chat.request import Image, Thinking, ToolResult
from tests.clients import turns
from tests.clients.conversations import PIXEL

TOLD = "".join(turns.HELLO)


class Recipe(pydantic.BaseModel):
    name: str
    steps: int


DIALECTS = ["openai-chat", "openai-responses", "anthropic-messages"]


@pytest.fixture(scope="module", params=[None, *DIALECTS])
def speaks(request):
    return request.param


@pytest.fixture(params=["chat", "responses", "messages"])
async def model(request, fleet):
    if request.param == "messages":
        async with anthropic.AsyncAnthropic(
            base_url=fleet.url, api_key="none", max_retries=0
        ) as client:
            provider = AnthropicProvider(anthropic_client=client)
            yield AnthropicModel("scripted", provider=provider)
        return
    kind = OpenAIChatModel if request.param == "chat" else OpenAIResponsesModel
    async with openai.AsyncOpenAI(
        base_url=f"{fleet.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield kind("scripted", provider=OpenAIProvider(openai_client=client))


async def test_a_whole_answer(model, fleet):
    result = await Agent(model, instructions="Be kind.").run("hello you")

    assert result.output == TOLD
    assert (result.usage.input_tokens, result.usage.output_tokens) == (4, 4)
    assert [(m.role, m.text) for m in fleet.last.messages] == [
        ("system", "Be kind."),
        ("user", "hello you"),
    ]


async def test_a_stream(model):
    async with Agent(model).run_stream("hello you") as result:
        pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]

    assert "".join(pieces) == TOLD


async def test_tools_are_run_and_their_results_come_back(model, fleet):
    agent, called = Agent(model), []

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """Tell the weather."""
        called.append(city)
        return f"{city} is fine"

    result = await agent.run("weather please")

    assert result.output == "".join(turns.ANSWER)
    assert sorted(called) == ["Oslo", "Paris"]
    parts = [part for message in fleet.last.messages for part in message.parts]
    results = {part.call_id: part.text for part in parts if isinstance(part, ToolResult)}
    assert results == {"call_paris": "Paris is fine", "call_oslo": "Oslo is fine"}
    assert [part.text for part in parts if isinstance(part, Thinking)] == ["".join(turns.THOUGHTS)]


async def test_images_arrive(model, fleet):
    image = BinaryContent.from_data_uri(PIXEL)

    await Agent(model).run(["hello, what is this?", image])

    [image] = [part for part in fleet.last.messages[0].parts if isinstance(part, Image)]
    assert image.url == PIXEL


async def test_an_object_comes_by_a_tool(model):
    agent = Agent(model, output_type=Recipe)

    assert (await agent.run("final-result")).output == Recipe(name="Bread", steps=3)


async def test_an_error_of_the_servers_has_its_status(model):
    with pytest.raises(ModelHTTPError) as caught:
        await Agent(model).run("busy")

    assert caught.value.status_code == 429
