"""Every call of the `ollama` client, against a gateway and a neuron over sockets."""

from __future__ import annotations

import base64
import json

import ollama
import pytest

from cortex.chat.request import Image, JsonFormat, Reasoning, Sampling, Text
from tests.clients import turns

TOLD = "".join(turns.HELLO)
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def ask(client, text: str, **more):
    return client.chat("scripted", [{"role": "user", "content": text}], **more)


def get_weather(city: str) -> str:
    """
    Tell the weather.

    Args:
        city: Where.
    """
    return f"rain in {city}"


def test_a_whole_chat(client, fleet):
    answer = ask(client, "hello you")

    assert (answer.message.role, answer.message.content) == ("assistant", TOLD)
    assert (answer.model, answer.done, answer.done_reason) == ("scripted", True, "stop")
    assert (answer.prompt_eval_count, answer.eval_count) == (2, len(turns.HELLO))
    assert answer.message.thinking is None
    assert fleet.last.messages[0].text == "hello you"


def test_a_streamed_chat(client):
    *parts, last = ask(client, "hello you", stream=True)

    assert [part.message.content for part in parts] == list(turns.HELLO)
    assert [part.done for part in parts] == [False] * len(parts)
    assert (last.message.content, last.done, last.done_reason) == ("", True, "stop")
    assert last.eval_count == len(turns.HELLO)


@pytest.mark.parametrize("stream", [False, True])
def test_the_gateway_counts_tokens_exactly(fleet, stream):
    with ollama.Client(fleet.url, timeout=10) as client:
        answer = ask(client, "hello you there", stream=stream)
        if stream:
            assert len(list(answer)) == len(turns.HELLO) + 1

    fleet.until(lambda: any(record.id == fleet.last.id for record in fleet.gateway.records))
    [record] = [record for record in fleet.gateway.records if record.id == fleet.last.id]
    assert (record.dialect, record.outcome) == ("ollama-chat", "ok")
    assert (record.prompt_tokens, record.completion_tokens) == (3, len(turns.HELLO))


async def test_the_asynchronous_client(fleet):
    messages = [{"role": "user", "content": "hello"}]
    async with ollama.AsyncClient(fleet.url, timeout=10) as client:
        stream = await client.chat("scripted", messages, stream=True)
        parts = [part async for part in stream]

    assert "".join(part.message.content for part in parts) == TOLD


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_stands_beside_the_answer(client, fleet, stream):
    answer = ask(client, "ponder", think="low", stream=stream)
    parts = list(answer) if stream else [answer]

    thoughts = [part.message.thinking for part in parts if part.message.thinking]
    assert "".join(thoughts) == "".join(turns.THOUGHTS)
    assert "".join(part.message.content for part in parts) == TOLD
    assert fleet.last.reasoning == Reasoning(enabled=True, effort="low")


@pytest.mark.parametrize("stream", [False, True])
def test_a_turn_of_two_tools_and_the_turn_after_it(client, fleet, stream):
    messages = [{"role": "user", "content": "weather please"}]
    answer = client.chat("scripted", messages, tools=[get_weather], stream=stream)
    parts = list(answer) if stream else [answer]
    calls = [call for part in parts for call in part.message.tool_calls or ()]

    assert [(call.function.name, dict(call.function.arguments)) for call in calls] == [
        ("get_weather", {"city": "Paris"}),
        ("get_weather", {"city": "Oslo"}),
    ]
    assert parts[-1].done_reason == "stop"
    [tool] = fleet.last.tools
    assert (tool.name, tool.description) == ("get_weather", "Tell the weather.")
    assert tool.parameters["properties"]["city"]["type"] == "string"

    messages.append({"role": "assistant", "content": "Let me look.", "tool_calls": calls})
    for call in calls:
        content = get_weather(**call.function.arguments)
        messages.append({"role": "tool", "tool_name": "get_weather", "content": content})
    after = client.chat("scripted", messages, tools=[get_weather])

    assert after.message.content == "".join(turns.ANSWER)
    _, said, *results = fleet.last.messages
    assert [result.parts[0].call_id for result in results] == [part.id for part in said.parts[1:]]
    assert [result.parts[0].text for result in results] == ["rain in Paris", "rain in Oslo"]


def test_a_call_without_arguments(client):
    [call] = ask(client, "call-only", tools=[get_weather]).message.tool_calls

    assert (call.function.name, call.function.arguments) == ("now", {})


def test_an_image_arrives(client, fleet):
    client.chat("scripted", [{"role": "user", "content": "hello", "images": [PNG]}])

    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert fleet.last.messages[0].parts == (Image(url=url), Text("hello"))


def test_options_arrive(client, fleet):
    options = ollama.Options(
        temperature=0.5, top_p=0.9, top_k=40, seed=7, num_predict=9, stop=["x"], repeat_penalty=1.2
    )
    ask(client, "hello", options=options, keep_alive="5m")

    sampling = Sampling(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        repetition_penalty=1.2,
        seed=7,
        max_tokens=9,
        stop=("x",),
    )
    assert fleet.last.sampling == sampling


def test_a_schema_arrives(client, fleet):
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    answer = ask(client, "recipe", format=schema)

    assert json.loads(answer.message.content)["name"] == "Bread"
    assert fleet.last.format == JsonFormat(schema=schema)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(client, stream):
    answer = ask(client, "hello", logprobs=True, top_logprobs=1, stream=stream)
    parts = list(answer) if stream else [answer]
    logprobs = [each for part in parts for each in part.logprobs or ()]

    assert [each.token for each in logprobs] == list(turns.HELLO)
    assert {each.logprob for each in logprobs} == {-0.25}
    assert [each.top_logprobs[0].token for each in logprobs] == list(turns.HELLO)


def test_a_limit_is_a_reason(client):
    assert ask(client, "long").done_reason == "length"


def test_a_whole_generation(client, fleet):
    answer = client.generate("scripted", "ponder this", system="be brief")

    assert (answer.response, answer.thinking) == (TOLD, "".join(turns.THOUGHTS))
    assert (answer.done_reason, answer.prompt_eval_count) == ("stop", 4)
    assert [(m.role, m.text) for m in fleet.last.messages] == [
        ("system", "be brief"),
        ("user", "ponder this"),
    ]


def test_a_streamed_generation(client):
    *parts, last = client.generate("scripted", "hello", stream=True)

    assert [part.response for part in parts] == list(turns.HELLO)
    assert (last.response, last.done_reason, last.eval_count) == ("", "stop", len(turns.HELLO))


def test_a_raw_prompt_arrives_as_it_is(client, fleet):
    client.generate("scripted", "<s>hello", raw=True)

    assert (fleet.last.prompts, fleet.last.messages) == (("<s>hello",), ())


def test_an_image_of_a_generation_arrives(client, fleet):
    client.generate("scripted", "hello", images=[PNG])

    assert isinstance(fleet.last.messages[0].parts[0], Image)


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_asked_is_a_load(client, fleet, stream):
    chat = client.chat("scripted", [], stream=stream)
    generation = client.generate("scripted", stream=stream)
    for answer in (chat, generation):
        [only] = list(answer) if stream else [answer]
        assert (only.done, only.done_reason, only.eval_count) == (True, "load", None)

    assert fleet.harness.requests == []


def test_embeddings(client, fleet):
    several = client.embed("scripted", ["one", "two words"], dimensions=2)
    one = client.embed("scripted", "one")
    old = client.embeddings("scripted", "one")

    assert [len(vector) for vector in several.embeddings] == [2, 2]
    assert several.prompt_eval_count == 3
    assert list(old.embedding) == list(one.embeddings[0])
    assert [request.inputs for request in fleet.harness.embedded] == [
        ("one", "two words"),
        ("one",),
        ("one",),
    ]


def test_the_models_of_the_gateway(fleet):
    with ollama.Client(fleet.url, timeout=10) as client:
        listed = {model.model for model in client.list().models}
        running = {model.model: model for model in client.ps().models}

    assert {"scripted", "cold", "org/colder"} <= listed
    assert "org/colder" not in running
    assert running["scripted"].context_length == 200_000
    assert len(running["scripted"].digest) == 64


def test_the_models_of_a_neuron(fleet):
    with ollama.Client(fleet.neuron_url, timeout=10) as client:
        listed = [model.model for model in client.list().models]
        running = [model.model for model in client.ps().models]

    assert "scripted" in listed
    assert listed == running


def test_a_model_is_shown(client):
    shown = client.show("scripted")

    assert set(shown.capabilities) == {"completion", "vision", "embedding", "tools", "thinking"}
    assert shown.modelinfo["general.name"] == "scripted"
    assert shown.modelinfo[f"{shown.modelinfo['general.architecture']}.context_length"] == 200_000


def test_a_cold_model_with_a_tag_is_loaded(fleet):
    with ollama.Client(fleet.url, timeout=10) as client:
        answer = client.chat("cold:latest", [{"role": "user", "content": "hello"}])
        with pytest.raises(ollama.ResponseError) as caught:
            client.chat("cold", [{"role": "user", "content": "word " * 100}])

    assert (answer.model, answer.message.content) == ("cold:latest", TOLD)
    assert fleet.harness.requests[0].model == "cold"
    assert (caught.value.status_code, "context length" in caught.value.error) == (400, True)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("refused", 400, "no such thing"),
        ("busy", 429, "too many wait"),
        ("load-failed", 503, "out of memory"),
        ("unreachable", 502, "nobody there"),
        ("bug", 500, "internal error"),
    ],
)
def test_an_error_before_the_answer_has_its_status(client, stream, text, status, said):
    with pytest.raises(ollama.ResponseError) as caught:
        list(ask(client, text, stream=stream))

    assert caught.value.status_code == status
    assert said in caught.value.error


def test_an_error_in_the_middle_of_an_answer_is_an_error(client):
    parts = []
    with pytest.raises(ollama.ResponseError) as caught:
        parts.extend(part.message.content for part in ask(client, "die", stream=True))

    assert "the worker died" in caught.value.error
    with pytest.raises(ollama.ResponseError) as caught:
        ask(client, "die")
    assert caught.value.status_code == 502


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.chat("scriptd", [{"role": "user", "content": "hello"}]),
        lambda client: client.generate("scriptd", "hello"),
        lambda client: client.embed("scriptd", "hello"),
        lambda client: client.embeddings("scriptd", "hello"),
        lambda client: client.show("scriptd"),
    ],
    ids=["chat", "generate", "embed", "embeddings", "show"],
)
def test_an_unknown_model_is_not_found(client, call):
    with pytest.raises(ollama.ResponseError) as caught:
        call(client)

    assert caught.value.status_code == 404
    assert "scriptd" in caught.value.error


def test_a_client_that_unloads_is_told_why_not(client):
    with pytest.raises(ollama.ResponseError) as caught:
        client.generate("scripted", keep_alive=0)

    assert (caught.value.status_code, caught.value.error[:10]) == (400, "keep_alive")


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.pull("scripted"),
        lambda client: client.push("scripted"),
        lambda client: client.create("mine", from_="scripted"),
        lambda client: client.copy("scripted", "mine"),
        lambda client: client.delete("scripted"),
    ],
    ids=["pull", "push", "create", "copy", "delete"],
)
def test_the_models_of_a_fleet_are_not_a_clients_to_change(client, call):
    with pytest.raises(ollama.ResponseError) as caught:
        call(client)

    assert caught.value.status_code == 404
