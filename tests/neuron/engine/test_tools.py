"""Tools, thoughts and bare prompts through the torch harness, by random models."""

from __future__ import annotations

import json
import shutil
from contextlib import asynccontextmanager

import attrs
import pytest

from cortex.chat.events import (
    Finished,
    Started,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStarted,
)
from cortex.chat.request import (
    ChatRequest,
    Image,
    Message,
    Reasoning,
    Sampling,
    Tool,
    ToolChoice,
)
from cortex.errors import ContextLengthExceeded, ToolsUnsupported, VisionUnsupported
from cortex.fleet.model import ModelSpec
from cortex.testing import harness_contract
from tests.neuron.engine.conftest import load, running_harness
from tests.neuron.engine.test_harness import ask
from tests.neuron.text import templates

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.xdist_group("torch"),
    pytest.mark.asyncio(loop_scope="module"),
]
SMALL = {"type": "integer", "minimum": 0, "maximum": 99}
POINT = {
    "type": "object",
    "properties": {"x": SMALL, "y": SMALL},
    "required": ["x", "y"],
    "additionalProperties": False,
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
MOVE = Tool(name="move", description="Moves.", parameters=POINT, strict=True)
STOP = Tool(name="stop", parameters=NOTHING, strict=True)
TOOLS = (MOVE, STOP)
OFF = Reasoning(enabled=False)


@pytest.fixture(scope="session")
def templated(tiny_llama, tmp_path_factory):
    """Return how to give the tiny model another chat template."""

    def give(template, **more):
        folder = tmp_path_factory.mktemp("templated") / "model"
        shutil.copytree(tiny_llama.path, folder)
        (folder / "chat_template.jinja").write_text(template)
        for name, text in more.items():
            (folder / "additional_chat_templates").mkdir()
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(text)
        return attrs.evolve(tiny_llama, path=folder)

    return give


@asynccontextmanager
async def model(harness, checkpoint):
    """Have another model in the harness, and yield what the harness says of it."""
    yield await load(harness, checkpoint, "other")
    await harness.unload("other")


def forced(choice, number=0):
    request = ask("go", f"f{number}", "other", temperature=1.0, seed=number, max_tokens=400)
    return attrs.evolve(request, tools=TOOLS, tool_choice=choice, reasoning=OFF)


async def events_of(harness, request):
    return [event async for event in harness.generate(request)]


def calls_in(events):
    """Return the calls, and how the answer ended."""
    assert not [event for event in events if isinstance(event, TextDelta)]
    started = [event for event in events if isinstance(event, ToolCallStarted)]
    arguments = [
        "".join(e.arguments for e in events if isinstance(e, ToolCallDelta) and e.index == n)
        for n in range(len(started))
    ]
    names = [one.name for one in started]
    return list(zip(names, map(json.loads, arguments), strict=True)), events[-1]


async def test_the_harness_keeps_its_contract_with_tools(templated):
    async with running_harness() as (harness, _):
        await harness_contract(harness, ModelSpec(id="m"), templated(templates.QWEN))


async def test_calls_that_must_be_are_calls_whatever_the_model_is_like(harness, templated):
    async with model(harness, templated(templates.QWEN)) as running:
        assert running.capabilities == ("text", "tools", "reasoning")
        named = ToolChoice(mode="required", name="move", parallel=False)
        seen = set()
        for number in range(4):
            calls, finished = calls_in(await events_of(harness, forced(named, number)))
            ((name, arguments),) = calls
            assert name == "move"
            assert set(arguments) == {"x", "y"}
            assert finished.reason == "tool_calls"
            seen.add(str(arguments))
        assert len(seen) > 1
        several = ToolChoice(mode="required")
        for number in range(4):
            calls, finished = calls_in(await events_of(harness, forced(several, number)))
            assert {name for name, _ in calls} <= {"move", "stop"}
            assert finished.reason == "tool_calls"


async def test_ids_of_calls_are_the_requests_own(harness, templated):
    async with model(harness, templated(templates.QWEN)):
        choice = ToolChoice(mode="required", name="stop", parallel=False)
        ids = []
        for number in (1, 1, 2):
            events = await events_of(harness, forced(choice, number))
            ids += [event.id for event in events if isinstance(event, ToolCallStarted)]
        assert ids[0] == ids[1] != ids[2]


async def test_what_a_template_opens_is_thought_and_counted(harness, templated):
    async with model(harness, templated(templates.OPENING)):
        started, *said, finished = await events_of(
            harness, ask("think", model="other", max_tokens=9)
        )
        assert isinstance(started, Started)
        assert said
        assert all(isinstance(event, ThinkingDelta) for event in said)
        assert finished.usage.reasoning_tokens == finished.usage.completion_tokens > 0


async def test_tokens_of_a_prompt_are_counted_as_it_is_fed(harness, templated):
    async with model(harness, templated(templates.QWEN)):
        for request in (
            ask("x", model="other"),
            attrs.evolve(ask("x", model="other"), tools=TOOLS),
        ):
            started = await anext(events := harness.generate(request))
            await events.aclose()
            assert await harness.count(request) == started.prompt_tokens
        many = attrs.evolve(ask("x", model="other"), tools=TOOLS)
        assert await harness.count(many) > await harness.count(ask("x", model="other"))


async def test_a_model_may_have_a_template_for_tools_alone(harness, templated):
    async with model(harness, templated(templates.GEMMA, tool_use=templates.LLAMA)) as running:
        assert running.capabilities == ("text", "tools")
        plain = await harness.count(ask("x", model="other"))
        assert await harness.count(attrs.evolve(ask("x", model="other"), tools=TOOLS)) > plain + 100


async def test_tools_and_images_a_model_does_not_know_are_refused_before_the_answer(harness):
    with pytest.raises(ToolsUnsupported):
        await anext(harness.generate(attrs.evolve(ask("x"), tools=TOOLS)))
    shown = Message(role="user", parts=(Image(url="data:image/png;base64,AA=="),))
    with pytest.raises(VisionUnsupported):
        await anext(harness.generate(attrs.evolve(ask("x"), messages=(shown,))))
    with pytest.raises(VisionUnsupported):
        await harness.count(attrs.evolve(ask("x"), messages=(shown,)))
    assert harness.stats("tiny").in_flight == 0


def bare(prompt, **sampling):
    sampling = Sampling(temperature=0.0, **{"max_tokens": 6, **sampling})
    return ChatRequest(id="b", model="tiny", prompts=(prompt,), sampling=sampling)


async def test_a_bare_prompt_is_the_same_as_text_and_as_tokens(harness):
    vocabulary = harness._models["tiny"].text.vocabulary
    ids = tuple(vocabulary.encode("def f(", special=True))
    by_text = await events_of(harness, bare("def f("))
    by_ids = await events_of(harness, bare(ids))
    assert by_text[0] == Started(prompt_tokens=len(ids))
    assert by_ids[0] == Started(prompt_tokens=len(ids), prompt_text="def f(")
    assert by_text[1:-1] == by_ids[1:-1]
    with pytest.raises(ContextLengthExceeded) as caught:
        await anext(harness.generate(bare(ids * 1000)))
    assert caught.value.param == "prompt"


async def test_log_probabilities_ride_on_the_text(harness):
    events = await events_of(harness, bare("abc", logprobs=2, max_tokens=12))
    finished = events[-1]
    told = [one for event in events[1:-1] for one in event.logprobs]
    assert isinstance(finished, Finished)
    end = finished.reason == "stop"  # the end token is nobody's text
    assert len(told) == finished.usage.completion_tokens - end
    assert all(one.logprob <= 0 and len(one.top) == 2 for one in told)
    assert all(one.top[0].logprob >= one.top[1].logprob for one in told)
    text = b"".join(one.data for one in told).decode(errors="replace")
    assert text.startswith("".join(event.text for event in events[1:-1])[:1])
