"""The openai SDK's responses, through gateway and neuron."""

from __future__ import annotations

import openai
import pydantic
import pytest

from cortex.chat.request import Image, Text, Thinking, ToolCall, ToolResult
from tests.clients import turns
from tests.clients.conversations import PIXEL, WEATHER, WEATHER_TOOL

TOLD = "".join(turns.HELLO)
THOUGHT = "".join(turns.THOUGHTS)
TOOL = {"type": "function", "strict": True, **WEATHER_TOOL}


class Recipe(pydantic.BaseModel):
    name: str
    steps: int


@pytest.fixture(scope="module", params=[None, "openai-chat"], ids=["neuron", "translated"])
def speaks(request):
    return request.param


@pytest.fixture
def ai(fleet):
    with openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0, timeout=10) as ai:
        yield ai


def ask(ai, said, **more):
    return ai.responses.create(**{"model": "scripted", "input": said, **more})


def test_a_whole_answer(ai, fleet):
    answer = ask(ai, "hello you", instructions="Be kind.", store=False)

    assert answer.output_text == TOLD
    assert (answer.status, answer.model, answer.error) == ("completed", "scripted", None)
    assert [item.type for item in answer.output] == ["message"]
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (4, 4, 8)
    assert usage.input_tokens_details.cached_tokens == 1
    assert usage.output_tokens_details.reasoning_tokens == 0
    assert [(m.role, m.text) for m in fleet.last.messages] == [
        ("system", "Be kind."),
        ("user", "hello you"),
    ]
    assert fleet.last.id == answer._request_id


async def test_a_whole_answer_of_the_asynchronous_client(fleet):
    async with openai.AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="none") as ai:
        answer = await ask(ai, "hello you")

    assert answer.output_text == TOLD


def test_a_stream_has_its_events_in_order(ai):
    with ask(ai, "ponder", stream=True) as stream:
        events = [event for event in stream]  # noqa: C416 - shows what it is

    assert [event.type.removeprefix("response.") for event in events] == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added"),
        *("reasoning_text.delta", "reasoning_text.delta", "reasoning_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added"),
        *4 * ["output_text.delta"],
        *("output_text.done", "content_part.done", "output_item.done"),
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    final = events[-1].response
    assert final.output_text == TOLD
    assert final.output[0].content[0].text == THOUGHT
    assert final.usage.output_tokens_details.reasoning_tokens == len(turns.THOUGHTS)
    assert len({e.response.id for e in events if hasattr(e, "response")}) == 1


def test_the_stream_helper_puts_an_answer_together(ai):
    with ai.responses.stream(model="scripted", input="ponder") as stream:
        said = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final = stream.get_final_response()

    assert said == final.output_text == TOLD
    assert [item.type for item in final.output] == ["reasoning", "message"]


@pytest.mark.parametrize("how", ["whole", "streamed"])
def test_two_tools_called_at_once_and_their_results(ai, fleet, how):
    asked = {"model": "scripted", "tools": [TOOL], "tool_choice": "auto", "store": False}
    said = [{"role": "user", "content": "weather please"}]
    if how == "whole":
        first = ai.responses.create(input=said, **asked)
    else:
        with ai.responses.stream(input=said, **asked) as stream:
            first = stream.get_final_response()

    assert [item.type for item in first.output] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    calls = first.output[2:]
    assert [(c.call_id, c.name, c.arguments) for c in calls] == WEATHER
    assert len({item.id for item in first.output}) == 4
    assert fleet.last.tools[0].parameters == WEATHER_TOOL["parameters"]
    assert fleet.last.tools[0].strict

    results = [
        {"type": "function_call_output", "call_id": "call_oslo", "output": "5 degrees"},
        {
            "type": "function_call_output",
            "call_id": "call_paris",
            "output": [
                {"type": "input_text", "text": "12 degrees"},
                {"type": "input_image", "image_url": PIXEL, "detail": "auto"},
            ],
        },
    ]
    again = [item.model_dump(exclude_none=True, mode="json") for item in first.output]
    second = ai.responses.create(input=[*said, *again, *results], **asked)

    assert second.output_text == "".join(turns.ANSWER)
    messages = fleet.last.messages[1:]
    assert [message.role for message in messages[:2]] == ["assistant", "tool"]
    assert messages[0].parts == (
        Thinking(THOUGHT),
        Text("Let me look."),
        *(ToolCall(id=i, name=name, arguments=arguments) for i, name, arguments in WEATHER),
    )
    came = [part for message in messages[1:] for part in message.parts]
    image = Image(url=PIXEL, detail="auto")
    if fleet.speaks:  # chat has no image in a result
        paris, oslo, caption, picture = came
        assert paris == ToolResult(call_id="call_paris", parts=(Text("12 degrees"),))
        assert oslo == ToolResult(call_id="call_oslo", parts=(Text("5 degrees"),))
        assert "call_paris" in caption.text
        assert picture == image
    else:
        assert came == [
            ToolResult(call_id="call_oslo", parts=(Text("5 degrees"),)),
            ToolResult(call_id="call_paris", parts=(Text("12 degrees"), image)),
        ]


def test_a_conversation_goes_on_from_an_answer_that_was_kept(ai, fleet):
    first = ask(ai, "weather please", tools=[TOOL])
    results = [
        {"type": "function_call_output", "call_id": call_id, "output": "fine"}
        for call_id, *_ in WEATHER
    ]

    second = ask(ai, results, tools=[TOOL], previous_response_id=first.id)

    assert second.output_text == "".join(turns.ANSWER)
    assert second.previous_response_id == first.id
    assert fleet.last.messages[0].text == "weather please"
    assert ai.responses.retrieve(first.id).output == first.output
    inputs = ai.responses.input_items.list(second.id)
    assert {item.type for item in inputs} >= {"function_call_output"}
    ai.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        ai.responses.retrieve(first.id)


def test_an_answer_that_is_not_to_be_kept_is_not(ai):
    answer = ask(ai, "hello", store=False)

    with pytest.raises(openai.NotFoundError):
        ai.responses.retrieve(answer.id)
    with pytest.raises(openai.APIStatusError) as caught:
        ask(ai, "hello", previous_response_id=answer.id)
    assert caught.value.code == "previous_response_not_found"


def test_images_arrive(ai, fleet):
    parts = [
        {"type": "input_text", "text": "hello, what is this?"},
        {"type": "input_image", "image_url": PIXEL, "detail": "low"},
    ]

    ask(ai, [{"role": "user", "content": parts}])

    assert fleet.last.messages[0].parts == (
        Text("hello, what is this?"),
        Image(url=PIXEL, detail="low"),
    )


def test_how_much_to_think_arrives(ai, fleet):
    answer = ask(ai, "ponder", reasoning={"effort": "low", "summary": "auto"})

    assert fleet.last.reasoning.effort == "low"
    assert answer.output[0].content[0].text == THOUGHT


def test_a_thought_comes_back_where_nothing_is_kept(ai, fleet):
    more = {"tools": [TOOL], "store": False, "include": ["reasoning.encrypted_content"]}
    first = ask(ai, "weather please", **more)
    again = [item.model_dump(exclude_none=True, mode="json") for item in first.output]
    del again[0]["content"]  # what is left of it is sealed
    results = [
        {"type": "function_call_output", "call_id": call_id, "output": "fine"}
        for call_id, *_ in WEATHER
    ]

    ask(ai, [{"role": "user", "content": "weather please"}, *again, *results], **more)

    assert fleet.last.messages[1].parts[0] == Thinking(THOUGHT)


def test_parse_reads_a_model_out_of_the_answer(ai, fleet):
    answer = ai.responses.parse(model="scripted", input="recipe", text_format=Recipe)

    assert answer.output_parsed == Recipe(name="Bread", steps=3)
    assert fleet.last.format.schema["required"] == ["name", "steps"]


@pytest.mark.parametrize(
    ("word", "reason"), [("long", "max_output_tokens"), ("filtered", "content_filter")]
)
def test_an_answer_that_was_cut_off_says_why(ai, word, reason):
    answer = ask(ai, word)
    with ask(ai, word, stream=True) as stream:
        last = list(stream)[-1]

    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", reason)
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details.reason == reason


def test_what_the_sampler_is_told_arrives(ai, fleet):
    ask(ai, "hello", temperature=0.5, top_p=0.9, max_output_tokens=77)

    told = fleet.last.sampling
    assert (told.temperature, told.top_p, told.max_tokens) == (0.5, 0.9, 77)


def test_a_custom_tool_gets_free_text(ai, fleet):
    tool = {"type": "custom", "name": "patch", "description": "Change a file."}

    first = ask(ai, "custom-call", tools=[tool], store=False)

    [call] = first.output
    assert (call.type, call.name, call.input) == ("custom_tool_call", "patch", turns.PATCH)
    result = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "done"}
    again = [{"role": "user", "content": "custom-call"}, call.model_dump(mode="json"), result]
    assert ask(ai, again, tools=[tool], store=False).output_text == "It is changed."
    parts = [part for message in fleet.last.messages[1:] for part in message.parts]
    assert [part.call_id for part in parts if isinstance(part, ToolResult)] == ["call_patch"]


def test_what_is_not_done_in_the_background_is_refused(ai):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(ai, "hello", background=True)

    assert caught.value.param == "background"


def test_an_alias_answers_by_its_own_name(ai, fleet):
    assert ask(ai, "hello", model="nick").model == "nick"
    assert fleet.last.model == "scripted"


def test_a_client_that_leaves_ends_the_answer(ai, fleet):
    stream = ask(ai, "hang", stream=True)
    next(iter(stream))
    stream.close()

    fleet.until(lambda: fleet.harness.left)
