"""The openai SDK's chat completions, through gateway and neuron."""

from __future__ import annotations

import openai
import pydantic
import pytest

from cortex.chat.request import Image, Text, Thinking, ToolCall, ToolResult
from tests.clients import turns
from tests.clients.conversations import PIXEL, WEATHER, WEATHER_TOOL

TOLD = "".join(turns.HELLO)
THOUGHT = "".join(turns.THOUGHTS)
TOOLS = [{"type": "function", "function": WEATHER_TOOL}]


class Recipe(pydantic.BaseModel):
    name: str
    steps: int


@pytest.fixture
def ai(fleet):
    with openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0, timeout=10) as ai:
        yield ai


def user(text: str, *more):
    return {"role": "user", "content": [{"type": "text", "text": text}, *more] if more else text}


def ask(ai, *messages, **more):
    messages = [user(m) if isinstance(m, str) else m for m in messages]
    return ai.chat.completions.create(**{"model": "scripted", "messages": messages, **more})


def test_a_whole_answer(ai, fleet):
    answer = ask(ai, "hello you")

    assert answer.choices[0].message.content == TOLD
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, len(turns.HELLO))
    assert answer.usage.prompt_tokens_details.cached_tokens == 1
    assert answer.model == "scripted"
    assert fleet.last.messages[0].text == "hello you"
    assert fleet.last.id == answer._request_id


async def test_a_whole_answer_of_the_asynchronous_client(fleet):
    async with openai.AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="none") as ai:
        answer = await ask(ai, "hello you")

    assert answer.choices[0].message.content == TOLD


def test_the_neuron_alone_answers_the_same(ai, fleet):
    with openai.OpenAI(base_url=f"{fleet.neuron_url}/v1", api_key="none", max_retries=0) as direct:
        through = ask(ai, "hello you")  # loads the model
        alone = ask(direct, "hello you")

    assert alone.choices == through.choices


def test_a_stream(ai):
    chunks = list(ask(ai, "ponder", stream=True, stream_options={"include_usage": True}))

    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    thought = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
    said = [delta.content or "" for delta in deltas]
    assert deltas[0].role == "assistant"
    assert ("".join(thought), "".join(said)) == (THOUGHT, TOLD)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    usage = chunks[-1].usage
    assert usage.completion_tokens_details.reasoning_tokens == len(turns.THOUGHTS)


def test_a_stream_without_usage_has_none(ai):
    chunks = list(ask(ai, "hello", stream=True))

    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_two_tools_called_at_once_and_their_results(ai, fleet):
    first = ask(ai, "weather please", tools=TOOLS, tool_choice="auto")

    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.content == "Let me look."
    assert message.reasoning_content == THOUGHT
    assert [(c.id, c.function.name, c.function.arguments) for c in message.tool_calls] == WEATHER
    assert fleet.last.tools[0].name == "get_weather"
    assert fleet.last.tools[0].parameters == WEATHER_TOOL["parameters"]

    results = [
        {"role": "tool", "tool_call_id": "call_oslo", "content": "5 degrees"},
        {
            "role": "tool",
            "tool_call_id": "call_paris",
            "content": [{"type": "text", "text": "12 degrees"}],
        },
    ]
    asked, said = user("weather please"), message.model_dump(exclude_none=True)
    second = ask(ai, asked, said, *results, tools=TOOLS)

    assert second.choices[0].message.content == "".join(turns.ANSWER)
    parts = [part for turn in fleet.last.messages[1:] for part in turn.parts]
    assert parts == [
        Thinking(THOUGHT),
        Text("Let me look."),
        *(ToolCall(id=i, name=name, arguments=arguments) for i, name, arguments in WEATHER),
        ToolResult(call_id="call_oslo", parts=(Text("5 degrees"),)),
        ToolResult(call_id="call_paris", parts=(Text("12 degrees"),)),
    ]


def test_the_stream_helper_puts_calls_together(ai):
    messages = [user("weather please")]
    with ai.chat.completions.stream(model="scripted", messages=messages, tools=TOOLS) as stream:
        events = list(stream)
        final = stream.get_final_completion()

    calls = final.choices[0].message.tool_calls
    assert [(c.id, c.function.name, c.function.arguments) for c in calls] == WEATHER
    assert final.choices[0].finish_reason == "tool_calls"
    done = [e for e in events if e.type == "tool_calls.function.arguments.done"]
    assert [event.index for event in done] == [0, 1]


def test_a_call_without_arguments_has_an_empty_object(ai):
    answer = ask(ai, "call-only", tools=[{"type": "function", "function": {"name": "now"}}])

    message = answer.choices[0].message
    assert message.content is None
    assert message.tool_calls[0].function.arguments == "{}"


@pytest.mark.parametrize(
    ("choice", "mode", "name"),
    [
        ("required", "required", None),
        ("none", "none", None),
        ({"type": "function", "function": {"name": "get_weather"}}, "required", "get_weather"),
    ],
)
def test_the_choice_of_tools_arrives(ai, fleet, choice, mode, name):
    ask(ai, "hello", tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)

    assert (fleet.last.tool_choice.mode, fleet.last.tool_choice.name) == (mode, name)
    assert not fleet.last.tool_choice.parallel


def test_images_arrive(ai, fleet):
    images = [{"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}]

    ask(ai, user("hello, what is this?", *images))

    assert fleet.last.messages[0].parts == (
        Text("hello, what is this?"),
        Image(url=PIXEL, detail="low"),
    )


def test_what_it_thought_comes_apart_from_what_it_says(ai, fleet):
    answer = ask(ai, "ponder", reasoning_effort="high")

    assert answer.choices[0].message.reasoning_content == THOUGHT
    assert answer.choices[0].message.content == TOLD
    assert answer.usage.completion_tokens_details.reasoning_tokens == len(turns.THOUGHTS)
    assert fleet.last.reasoning.effort == "high"


def test_parse_reads_a_model_out_of_the_answer(ai, fleet):
    answer = ai.chat.completions.parse(
        model="scripted", messages=[user("recipe")], response_format=Recipe
    )

    assert answer.choices[0].message.parsed == Recipe(name="Bread", steps=3)
    assert fleet.last.format.schema["required"] == ["name", "steps"]
    assert fleet.last.format.name == "Recipe"


def test_parse_of_what_was_cut_off_says_so(ai):
    with pytest.raises(openai.LengthFinishReasonError):
        ai.chat.completions.parse(model="scripted", messages=[user("long")], response_format=Recipe)


def test_parse_of_what_was_filtered_says_so(ai):
    with pytest.raises(openai.ContentFilterFinishReasonError):
        ai.chat.completions.parse(
            model="scripted", messages=[user("filtered")], response_format=Recipe
        )


def test_several_answers_with_log_probabilities(ai, fleet):
    answer = ask(ai, "hello", n=2, seed=7, logprobs=True, top_logprobs=1)

    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [choice.message.content for choice in answer.choices] == [TOLD, TOLD]
    tokens = answer.choices[1].logprobs.content
    assert "".join(token.token for token in tokens) == TOLD
    assert tokens[0].top_logprobs[0].logprob == tokens[0].logprob
    assert sorted(request.sampling.seed for request in fleet.harness.requests) == [7, 8]
    assert answer.usage.completion_tokens == 2 * len(turns.HELLO)


def test_what_the_sampler_is_told_arrives(ai, fleet):
    ask(
        ai,
        "hello",
        temperature=0.5,
        top_p=0.9,
        seed=3,
        max_completion_tokens=77,
        stop=["END", "STOP"],
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"5": 2},
    )

    told = fleet.last.sampling
    assert (told.temperature, told.top_p, told.seed, told.max_tokens) == (0.5, 0.9, 3, 77)
    assert told.stop == ("END", "STOP")
    assert (told.presence_penalty, told.frequency_penalty) == (0.5, -0.5)
    assert told.logit_bias == {5: 2}


def test_what_cannot_be_honoured_is_refused_by_its_name(ai):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(ai, "hello", modalities=["text", "audio"], audio={"voice": "a", "format": "wav"})

    assert caught.value.code == "unsupported_parameter"
    assert caught.value.param in ("modalities", "audio")


def test_an_alias_answers_by_its_own_name(ai, fleet):
    assert ask(ai, "hello", model="nick").model == "nick"
    assert fleet.last.model == "scripted"


def test_a_client_names_its_request(ai, fleet):
    answer = ask(ai, "hello", extra_headers={"x-request-id": "mine-1"})

    assert (answer._request_id, fleet.last.id) == ("mine-1", "mine-1")


def test_a_client_that_leaves_ends_the_answer(ai, fleet):
    stream = ask(ai, "hang", stream=True)
    next(stream)
    stream.close()

    fleet.until(lambda: fleet.harness.left)


def test_the_models(ai):
    assert {"scripted", "small", "nick"} <= {model.id for model in ai.models.list()}
    assert ai.models.retrieve("scripted").owned_by == "cortex"
    with pytest.raises(openai.NotFoundError) as caught:
        ai.models.retrieve("nobody")
    assert caught.value.code == "model_not_found"


def test_a_wrong_field_is_named(ai):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(ai, "hello", temperature=3)

    assert (caught.value.code, caught.value.param) == ("invalid_value", "temperature")


def test_a_path_that_is_not_there_is_not_found(ai):
    with pytest.raises(openai.NotFoundError) as caught:
        ai.files.list()

    assert caught.value.code == "not_found"
