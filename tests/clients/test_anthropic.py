"""The anthropic SDK's messages, through gateway and neuron."""

from __future__ import annotations

import anthropic
import pydantic
import pytest

from cortex.chat.request import Image, Text, Thinking, ToolCall, ToolResult
from tests.clients import turns
from tests.clients.conversations import CITY, PIXEL, PIXEL_BASE64, WEATHER

TOLD = "".join(turns.HELLO)
THOUGHT = "".join(turns.THOUGHTS)
TOOL = {"name": "get_weather", "description": "Tell the weather.", "input_schema": CITY}
IMAGE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": PIXEL_BASE64},
}


class Recipe(pydantic.BaseModel):
    name: str
    steps: int


@pytest.fixture(scope="module", params=[None, "openai-chat"], ids=["neuron", "translated"])
def speaks(request):
    return request.param


@pytest.fixture
def ai(fleet):
    with anthropic.Anthropic(
        base_url=fleet.url, api_key="none", max_retries=0, timeout=10
    ) as client:
        yield client


def told(*messages, **more):
    messages = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]
    return {"model": "scripted", "max_tokens": 100, "messages": messages, **more}


def ask(ai, *messages, **more):
    return ai.messages.create(**told(*messages, **more))


def test_a_whole_answer(ai, fleet):
    answer = ask(ai, "hello you", system="Be kind.")

    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "scripted")
    assert [(block.type, block.text) for block in answer.content] == [("text", TOLD)]
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    usage = answer.usage  # the prompt has four tokens, one of them from the cache
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (3, 1, 4)
    assert [(m.role, m.text) for m in fleet.last.messages] == [
        ("system", "Be kind."),
        ("user", "hello you"),
    ]
    assert fleet.last.sampling.max_tokens == 100
    assert fleet.last.id == answer._request_id


async def test_a_whole_answer_of_the_asynchronous_client(fleet):
    async with anthropic.AsyncAnthropic(base_url=fleet.url, api_key="none") as ai:
        answer = await ai.messages.create(**told("hello you"))

    assert answer.content[0].text == TOLD


def test_a_token_instead_of_a_key_does_as_well(fleet):
    with anthropic.Anthropic(base_url=fleet.url, auth_token="none", max_retries=0) as ai:
        assert ask(ai, "hello").content[0].text == TOLD


def test_a_stream_has_its_events_in_order(ai):
    with ask(ai, "ponder", stream=True, thinking={"type": "enabled", "budget_tokens": 1024}) as s:
        events = [event for event in s]  # noqa: C416 - shows what it is

    kinds = [event.type for event in events if event.type != "ping"]
    assert kinds == [
        "message_start",
        *("content_block_start", "content_block_delta", "content_block_delta"),
        *("content_block_delta", "content_block_stop"),  # the signature
        *("content_block_start", *4 * ["content_block_delta"], "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    start, delta = events[0].message, events[-2]
    assert start.usage.input_tokens == 1
    assert start.content == []
    assert (delta.delta.stop_reason, delta.usage.output_tokens) == ("end_turn", 6)
    assert delta.usage.input_tokens == 1


def test_the_stream_helper_puts_an_answer_together(ai):
    with ai.messages.stream(**told("ponder")) as stream:
        said = "".join(stream.text_stream)
        final = stream.get_final_message()

    assert said == TOLD
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert final.content[0].thinking == THOUGHT
    assert final.content[0].signature
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", 6)


def test_two_tools_called_at_once_and_their_results(ai, fleet):
    first = ask(ai, "weather please", tools=[TOOL], tool_choice={"type": "auto"})

    assert first.stop_reason == "tool_use"
    thinking, text, *uses = first.content
    assert (thinking.thinking, text.text) == (THOUGHT, "Let me look.")
    assert [(u.id, u.name, u.input) for u in uses] == [
        ("call_paris", "get_weather", {"city": "Paris"}),
        ("call_oslo", "get_weather", {"city": "Oslo"}),
    ]
    assert fleet.last.tools[0].parameters == CITY

    results = [
        {"type": "tool_result", "tool_use_id": "call_oslo", "content": "no data", "is_error": True},
        {
            "type": "tool_result",
            "tool_use_id": "call_paris",
            "content": [{"type": "text", "text": "12 degrees"}, IMAGE],
        },
        {"type": "text", "text": "Go on."},
    ]
    turn = {"role": "assistant", "content": first.content}
    second = ask(ai, "weather please", turn, {"role": "user", "content": results}, tools=[TOOL])

    assert [block.type for block in second.content] == ["thinking", "text"]
    assert second.content[1].text == "".join(turns.ANSWER)
    assert fleet.last.messages[1].parts == (
        Thinking(THOUGHT),
        Text("Let me look."),
        ToolCall(id="call_paris", name="get_weather", arguments='{"city":"Paris"}'),
        ToolCall(id="call_oslo", name="get_weather", arguments='{"city":"Oslo"}'),
    )
    came = [part for message in fleet.last.messages[2:] for part in message.parts]
    if fleet.speaks:  # chat has no word for a failure, and no image in a result
        paris, oslo, caption, image, *_, words = came
        assert paris == ToolResult(call_id="call_paris", parts=(Text("12 degrees"),))
        assert oslo == ToolResult(call_id="call_oslo", parts=(Text("[tool error] no data"),))
        assert "call_paris" in caption.text
        assert (image, words) == (Image(url=PIXEL), Text("Go on."))
    else:
        assert came == [
            ToolResult(call_id="call_oslo", parts=(Text("no data"),), is_error=True),
            ToolResult(call_id="call_paris", parts=(Text("12 degrees"), Image(url=PIXEL))),
            Text("Go on."),
        ]


def test_the_stream_helper_puts_calls_together(ai):
    with ai.messages.stream(**told("weather please", tools=[TOOL])) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "input_json"]
        final = stream.get_final_message()

    assert snapshots[-1] == {"city": "Oslo"}
    uses = [block for block in final.content if block.type == "tool_use"]
    assert [(u.id, u.input) for u in uses] == [
        ("call_paris", {"city": "Paris"}),
        ("call_oslo", {"city": "Oslo"}),
    ]
    assert final.stop_reason == "tool_use"


@pytest.mark.parametrize("how", ["whole", "streamed"])
def test_a_call_without_arguments_has_an_empty_input(ai, how):
    asked = told("call-only", tools=[{"name": "now", "input_schema": {"type": "object"}}])
    if how == "whole":
        final = ai.messages.create(**asked)
    else:
        with ai.messages.stream(**asked) as stream:
            final = stream.get_final_message()

    assert [(block.type, block.input) for block in final.content] == [("tool_use", {})]


@pytest.mark.parametrize(
    ("choice", "mode", "name", "parallel"),
    [
        ({"type": "any", "disable_parallel_tool_use": True}, "required", None, False),
        ({"type": "none"}, "none", None, True),
        ({"type": "tool", "name": "get_weather"}, "required", "get_weather", True),
    ],
)
def test_the_choice_of_tools_arrives(ai, fleet, choice, mode, name, parallel):
    ask(ai, "hello", tools=[TOOL], tool_choice=choice)

    arrived = fleet.last.tool_choice
    assert (arrived.mode, arrived.name, arrived.parallel) == (mode, name, parallel)


def test_images_and_documents_arrive(ai, fleet):
    document = {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": "a paper"},
    }
    linked = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
    words = {"type": "text", "text": "hello, what is this?", "cache_control": {"type": "ephemeral"}}

    ask(ai, {"role": "user", "content": [IMAGE, linked, document, words]})

    message = fleet.last.messages[0]
    assert message.parts[:2] == (Image(url=PIXEL), Image(url="https://example.org/a.png"))
    assert "a paper" in message.text
    assert message.text.endswith("hello, what is this?")


def test_how_much_to_think_arrives(ai, fleet):
    ask(ai, "ponder", thinking={"type": "enabled", "budget_tokens": 1024})
    assert fleet.last.reasoning.enabled
    assert fleet.last.reasoning.budget_tokens == 1024

    ask(ai, "hello", thinking={"type": "disabled"})
    assert fleet.last.reasoning.enabled is False

    ask(ai, "ponder", thinking={"type": "adaptive"}, output_config={"effort": "low"})
    assert (fleet.last.reasoning.enabled, fleet.last.reasoning.effort) == (True, "low")


def test_a_thought_kept_back_is_not_shown_and_comes_back_all_the_same(ai, fleet):
    thinking = {"type": "adaptive", "display": "omitted"}
    first = ask(ai, "weather please", tools=[TOOL], thinking=thinking)
    assert first.content[0].type == "thinking"
    assert first.content[0].thinking == ""

    results = [
        {"type": "tool_result", "tool_use_id": call_id, "content": "x"} for call_id, *_ in WEATHER
    ]
    turn = {"role": "assistant", "content": first.content}
    ask(
        ai,
        "weather please",
        turn,
        {"role": "user", "content": results},
        tools=[TOOL],
        thinking=thinking,
    )
    assert fleet.last.messages[1].parts[0] == Thinking(THOUGHT)


def test_parse_reads_a_model_out_of_the_answer(ai, fleet):
    answer = ai.messages.parse(**told("recipe"), output_format=Recipe)

    assert answer.parsed_output == Recipe(name="Bread", steps=3)
    assert fleet.last.format.schema["required"] == ["name", "steps"]


@pytest.mark.parametrize(
    ("word", "reason", "sequence"),
    [
        ("long", "max_tokens", None),
        ("halt", "stop_sequence", "END"),
        ("filtered", "refusal", None),
    ],
)
def test_why_it_ended(ai, fleet, word, reason, sequence):
    answer = ask(ai, word, stop_sequences=["END"])
    with ai.messages.stream(**told(word, stop_sequences=["END"])) as stream:
        streamed = stream.get_final_message()

    assert (answer.stop_reason, answer.stop_sequence) == (reason, sequence)
    assert (streamed.stop_reason, streamed.stop_sequence) == (reason, sequence)
    assert fleet.last.sampling.stop == ("END",)


def test_what_the_sampler_is_told_arrives(ai, fleet):
    extra = {"temperature": 0.5, "top_p": 0.9, "top_k": 5}
    ask(ai, "hello", metadata={"user_id": "u1"}, extra_body=extra)

    sampling = fleet.last.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 5)


def test_tokens_are_counted_as_they_would_be_fed(ai, fleet):
    if fleet.speaks:
        with pytest.raises(anthropic.BadRequestError, match="cannot be asked"):
            ai.messages.count_tokens(model="scripted", messages=told("hello")["messages"])
        return
    asked = {"system": "Be kind.", "tools": [TOOL]}
    messages = [{"role": "user", "content": "hello you"}]
    counted = ai.messages.count_tokens(model="scripted", messages=messages, **asked)
    answer = ask(ai, "hello you", **asked)

    usage = answer.usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_an_alias_answers_by_its_own_name(ai, fleet):
    assert ask(ai, "hello", model="nick").model == "nick"
    assert fleet.last.model == "scripted"


def test_a_client_that_leaves_ends_the_answer(ai, fleet):
    stream = ask(ai, "hang", stream=True)
    next(iter(stream))
    stream.close()

    fleet.until(lambda: fleet.harness.left)


def test_the_models_page_by_page(ai):
    every = list(ai.models.list(limit=1))  # asks for each page

    assert {"scripted", "small", "nick"} <= {model.id for model in every}
    assert len(every) == len({model.id for model in every})
    assert {model.type for model in every} == {"model"}
    model = ai.models.retrieve("scripted")
    assert (model.id, model.type, model.created_at.tzinfo is not None) == (
        "scripted",
        "model",
        True,
    )
    with pytest.raises(anthropic.NotFoundError) as caught:
        ai.models.retrieve("nobody")
    assert caught.value.type == "not_found_error"


def test_the_beta_client_does_as_well(ai, fleet):
    answer = ai.beta.messages.create(**told("hello you"), betas=["interleaved-thinking-2025-05-14"])

    assert answer.content[0].text == TOLD


def test_a_wrong_field_is_named(ai):
    with pytest.raises(anthropic.BadRequestError, match="max_tokens") as caught:
        ask(ai, "hello", extra_body={"max_tokens": 0})

    assert caught.value.type == "invalid_request_error"
