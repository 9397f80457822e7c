"""The openai SDK's Responses, against a gateway and a neuron whose model says what `turns` has."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pydantic
import pytest

from cortex.chat.request import Image, Thinking, ToolCall, ToolResult
from cortex.fleet.model import ModelSpec
from tests.clients import turns
from tests.clients.conversations import PIXEL, WEATHER, WEATHER_TOOL
from tests.clients.fleet import Fleet, fleet

MODELS = (ModelSpec(id="scripted"), ModelSpec(id="small", context=8))
HELLO = "".join(turns.HELLO)
TOOL = {"type": "function", "strict": True, **WEATHER_TOOL}


class Recipe(pydantic.BaseModel):
    name: str
    steps: int


class Weather(pydantic.BaseModel):
    """Tell the weather."""

    city: str


@pytest.fixture(scope="module")
def servers() -> Iterator[Fleet]:
    with fleet("tests.clients.turns:SCRIPT", MODELS, {"nick": "scripted"}) as running:
        yield running


@pytest.fixture(params=["gateway", "neuron"])
def ai(servers, request) -> Iterator[openai.OpenAI]:
    servers.harness.forget()
    url = servers.url if request.param == "gateway" else servers.neuron_url
    if request.param == "neuron":  # which loads nothing by itself
        with openai.OpenAI(base_url=f"{servers.url}/v1", api_key="none") as through:
            through.responses.create(model="scripted", input="hello", store=False)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=10) as found:
        yield found


def ask(ai: openai.OpenAI, text: object, **more: object):
    return ai.responses.create(model="scripted", input=text, **more)


def test_a_whole_answer(ai):
    answer = ask(ai, "hello", instructions="Be kind.", metadata={"run": "7"})

    assert (answer.output_text, answer.status, answer.model) == (HELLO, "completed", "scripted")
    assert (answer.instructions, answer.metadata) == ("Be kind.", {"run": "7"})
    assert answer.usage.input_tokens_details.cached_tokens == 1
    assert answer.usage.input_tokens_details.cache_write_tokens == 0
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer._request_id == answer.id.removeprefix("resp_")


def test_a_stream_of_events(ai):
    events = list(ask(ai, "ponder", stream=True))

    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:3] == ["created", "in_progress", "output_item.added"]
    assert kinds[-3:] == ["content_part.done", "output_item.done", "completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert deltas == list(turns.HELLO)
    thought = [e.delta for e in events if e.type == "response.reasoning_text.delta"]
    assert thought == list(turns.THOUGHTS)
    assert events[-1].response.output_text == HELLO


def test_the_stream_helper(ai):
    with ai.responses.stream(model="scripted", input="weather please", tools=[TOOL]) as stream:
        for event in stream:
            if event.type == "response.function_call_arguments.delta":
                assert event.snapshot.endswith(event.delta)
        final = stream.get_final_response()

    assert [item.type for item in final.output] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    calls = [(c.call_id, c.name, c.arguments) for c in final.output if c.type == "function_call"]
    assert calls == WEATHER


@pytest.mark.parametrize("kept", [True, False])
def test_tools_there_and_back(ai, servers, kept):
    first = ask(
        ai, "weather please", tools=[TOOL], store=kept, include=["reasoning.encrypted_content"]
    )
    calls = [item for item in first.output if item.type == "function_call"]
    results = [
        {"type": "function_call_output", "call_id": call.call_id, "output": f"{n} degrees"}
        for n, call in enumerate(calls)
    ]
    if kept:
        second = ask(ai, results, tools=[TOOL], previous_response_id=first.id)
    else:
        said = [item.to_dict() for item in first.output]
        asked = [{"role": "user", "content": "weather please"}, *said, *results]
        second = ask(ai, asked, tools=[TOOL], store=False)

    assert second.output_text == "".join(turns.ANSWER)
    user, assistant, *tools = servers.last.messages
    assert user.text == "weather please"
    assert assistant.parts[0] == Thinking("".join(turns.THOUGHTS))
    assert [p for p in assistant.parts if isinstance(p, ToolCall)] == [
        ToolCall(id=call_id, name=name, arguments=arguments) for call_id, name, arguments in WEATHER
    ]
    results = [part for turn in tools for part in turn.parts]
    assert [(type(r), r.call_id, r.text) for r in results] == [
        (ToolResult, "call_paris", "0 degrees"),
        (ToolResult, "call_oslo", "1 degrees"),
    ]


def test_a_conversation_of_three_turns(ai, servers):
    answer = ask(ai, "hello")
    for _ in range(2):
        answer = ask(ai, "hello again", previous_response_id=answer.id)

    roles = [message.role for message in servers.last.messages]
    assert roles == ["user", "assistant", "user", "assistant", "user"]


def test_what_is_kept_is_retrieved_listed_and_deleted(ai):
    answer = ask(ai, [{"role": "user", "content": "hello"}, {"role": "user", "content": "hello"}])

    assert ai.responses.retrieve(answer.id).to_dict() == answer.to_dict()
    items = list(ai.responses.input_items.list(answer.id, limit=1))
    assert [item.content[0].text for item in items] == ["hello", "hello"]
    with pytest.raises(openai.BadRequestError):
        ai.responses.cancel(answer.id)
    ai.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        ai.responses.retrieve(answer.id)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(ai, "hello", previous_response_id=answer.id)
    assert caught.value.code == "previous_response_not_found"


def test_parse_of_a_pydantic_class(ai, servers):
    answer = ai.responses.parse(model="scripted", input="recipe", text_format=Recipe)

    assert answer.output_parsed == Recipe(name="Bread", steps=3)
    assert servers.last.format.schema["required"] == ["name", "steps"]


def test_parse_of_a_tool(ai):
    tool = openai.pydantic_function_tool(Weather, name="get_weather")
    answer = ai.responses.parse(model="scripted", input="weather please", tools=[tool])
    calls = [item for item in answer.output if item.type == "function_call"]
    assert [call.parsed_arguments for call in calls] == [
        Weather(city="Paris"),
        Weather(city="Oslo"),
    ]


def test_a_picture(ai, servers):
    parts = [
        {"type": "input_text", "text": "hello"},
        {"type": "input_image", "image_url": PIXEL, "detail": "low"},
    ]
    ask(ai, [{"role": "user", "content": parts}])
    assert servers.last.messages[0].parts[1] == Image(url=PIXEL, detail="low")


def test_log_probabilities(ai):
    answer = ask(ai, "hello", include=["message.output_text.logprobs"], top_logprobs=1)
    tokens = answer.output[0].content[0].logprobs
    assert [token.token for token in tokens] == list(turns.HELLO)
    assert all(len(token.top_logprobs) == 1 for token in tokens)


def test_an_alias_is_the_model_of_the_answer(servers):
    with openai.OpenAI(base_url=f"{servers.url}/v1", api_key="none") as through:
        assert through.responses.create(model="nick", input="hello").model == "nick"


@pytest.mark.parametrize(
    ("word", "reason"), [("long", "max_output_tokens"), ("filtered", "content_filter")]
)
def test_an_incomplete_answer(ai, word, reason):
    answer = ask(ai, word)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", reason)
    assert list(ask(ai, word, stream=True))[-1].type == "response.incomplete"


def test_a_death_is_a_failed_response(ai):
    last = list(ask(ai, "die", stream=True))[-1]
    assert last.type == "response.failed"
    assert last.response.error.code == "server_error"
    assert last.response.error.message == "the worker died"
    with pytest.raises(openai.InternalServerError):
        ask(ai, "die")


@pytest.mark.parametrize(
    ("word", "kind", "code"),
    [
        ("busy", openai.RateLimitError, "queue_full"),
        ("loading", openai.InternalServerError, "model_loading"),
        ("refused", openai.BadRequestError, "invalid_value"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_an_error_has_the_class_users_expect(ai, word, kind, code, stream):
    with pytest.raises(kind) as caught:
        ask(ai, word, stream=stream)
    assert caught.value.code == code


def test_a_prompt_that_does_not_fit(servers):
    with openai.OpenAI(base_url=f"{servers.url}/v1", api_key="none", max_retries=0) as through:
        with pytest.raises(openai.BadRequestError) as caught:
            through.responses.create(model="small", input="one two three four five six seven eight")
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.NotFoundError) as caught:
            through.responses.create(model="nobody", input="hello")
        assert caught.value.code == "model_not_found"
