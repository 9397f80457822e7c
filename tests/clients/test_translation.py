"""The SDKs ask a server that speaks one dialect only, and it is not theirs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import anthropic
import attrs
import openai
import pytest

from cortex.chat.request import Image, ToolCall, ToolResult
from tests.clients import fleet as fleets
from tests.clients import turns
from tests.clients.conftest import MODELS
from tests.clients.conversations import CITY, PIXEL

CHAT, MESSAGES, RESPONSES = "openai-chat", "anthropic-messages", "openai-responses"
TEXT, THOUGHT = "".join(turns.HELLO), "".join(turns.THOUGHTS)
CALLS = [(id_, name, json.loads("".join(pieces))) for id_, name, pieces in turns.WEATHER]


@pytest.fixture(scope="module", params=[CHAT, MESSAGES, RESPONSES])
def servers(request) -> Iterator[fleets.Fleet]:
    aliases = {"nick": "scripted"}
    with fleets.fleet(
        "tests.clients.turns:SCRIPT", MODELS, aliases, speaks=request.param
    ) as running:
        yield running


@pytest.fixture(params=[CHAT, MESSAGES, RESPONSES])
def client(request, fleet):
    client = {CHAT: Chat, MESSAGES: Messages, RESPONSES: Responses}[request.param](fleet)
    with client.ai:  # a client that is dropped unclosed warns whenever it happens to be collected
        yield client


@attrs.frozen(kw_only=True)
class Said:
    """An answer, whatever dialect it came in."""

    model: str
    text: str
    thinking: str
    calls: list[tuple[str, str, dict]]
    end: str
    prompt: int
    turn: list[dict]


class Chat:
    """The openai SDK, chat completions."""

    name = CHAT
    stopped, cut, called = "stop", "length", "tool_calls"

    def __init__(self, fleet):
        self.ai = openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0)

    def ask(self, *turns_, stream=False, tools=False, model="scripted", **more):
        tool = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
        if tools:
            more["tools"] = [tool]
        messages = [t if isinstance(t, dict) else {"role": "user", "content": t} for t in turns_]
        asked = {"model": model, "messages": messages, "max_tokens": 100, **more}
        if stream:
            with self.ai.chat.completions.stream(
                **asked, stream_options={"include_usage": True}
            ) as events:
                done = events.get_final_completion()
        else:
            done = self.ai.chat.completions.create(**asked)
        choice = done.choices[0]
        calls = choice.message.tool_calls or []
        return Said(
            model=done.model,
            text=choice.message.content or "",
            thinking=getattr(choice.message, "reasoning_content", None) or "",
            calls=[(c.id, c.function.name, json.loads(c.function.arguments)) for c in calls],
            end=choice.finish_reason,
            prompt=done.usage.prompt_tokens,
            turn=[choice.message.model_dump(exclude_none=True, exclude={"parsed"})],
        )

    def result(self, call, text):
        return {"role": "tool", "tool_call_id": call, "content": text}

    def picture(self, text):
        url = {"type": "image_url", "image_url": {"url": PIXEL}}
        return {"role": "user", "content": [{"type": "text", "text": text}, url]}


class Messages:
    """The anthropic SDK."""

    name = MESSAGES
    stopped, cut, called = "end_turn", "max_tokens", "tool_use"

    def __init__(self, fleet):
        self.ai = anthropic.Anthropic(base_url=fleet.url, api_key="none", max_retries=0)

    def ask(self, *turns_, stream=False, tools=False, model="scripted", **more):
        if tools:
            more["tools"] = [{"name": "get_weather", "input_schema": CITY}]
        messages = [t if isinstance(t, dict) else {"role": "user", "content": t} for t in turns_]
        asked = {"model": model, "messages": messages, "max_tokens": 100, **more}
        if stream:
            with self.ai.messages.stream(**asked) as events:
                done = events.get_final_message()
        else:
            done = self.ai.messages.create(**asked)

        def all_of(kind):
            return [block for block in done.content if block.type == kind]

        return Said(
            model=done.model,
            text="".join(block.text for block in all_of("text")),
            thinking="".join(block.thinking for block in all_of("thinking")),
            calls=[(block.id, block.name, block.input) for block in all_of("tool_use")],
            end=done.stop_reason,
            prompt=done.usage.input_tokens + (done.usage.cache_read_input_tokens or 0),
            turn=[{"role": "assistant", "content": done.content}],
        )

    def result(self, call, text):
        block = {"type": "tool_result", "tool_use_id": call, "content": text}
        return {"role": "user", "content": [block]}

    def picture(self, text):
        kind, data = PIXEL.removeprefix("data:").split(";base64,")
        source = {"type": "base64", "media_type": kind, "data": data}
        parts = [{"type": "text", "text": text}, {"type": "image", "source": source}]
        return {"role": "user", "content": parts}


class Responses:
    """The openai SDK, responses."""

    name = RESPONSES
    stopped, cut, called = "completed", "incomplete", "completed"

    def __init__(self, fleet):
        self.ai = openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0)

    def ask(self, *turns_, stream=False, tools=False, model="scripted", **more):
        if tools:
            more["tools"] = [{"type": "function", "name": "get_weather", "parameters": CITY}]
        items = [t if isinstance(t, dict) else {"role": "user", "content": t} for t in turns_]
        asked = {"model": model, "input": items, "store": False, "max_output_tokens": 100, **more}
        if stream:
            with self.ai.responses.stream(**asked) as events:
                for event in events:
                    if event.type == "response.failed":
                        raise openai.OpenAIError(event.response.error.message)
                    if event.type in ("response.completed", "response.incomplete"):
                        done = event.response
        else:
            done = self.ai.responses.create(**asked)
        thoughts = [item for item in done.output if item.type == "reasoning"]
        calls = [item for item in done.output if item.type == "function_call"]
        return Said(
            model=done.model,
            text=done.output_text,
            thinking="".join(part.text for item in thoughts for part in item.content),
            calls=[(c.call_id, c.name, json.loads(c.arguments)) for c in calls],
            end=done.status,
            prompt=done.usage.input_tokens,
            turn=[item.model_dump(exclude_none=True) for item in done.output],
        )

    def result(self, call, text):
        return {"type": "function_call_output", "call_id": call, "output": text}

    def picture(self, text):
        parts = [
            {"type": "input_text", "text": text},
            {"type": "input_image", "image_url": PIXEL, "detail": "auto"},
        ]
        return {"role": "user", "content": parts}


both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@both
def test_a_text_turn(client, fleet, stream):
    said = client.ask("hello", stream=stream)

    assert (said.text, said.end, said.model) == (TEXT, client.stopped, "scripted")
    assert said.prompt == 1
    assert fleet.last.sampling.max_tokens == 100


@both
def test_a_thought_comes_apart(client, stream):
    said = client.ask("ponder", stream=stream)

    assert (said.text, said.thinking) == (TEXT, THOUGHT)


@both
def test_two_tools_and_their_results(client, fleet, stream):
    first = client.ask("weather please", stream=stream, tools=True)

    assert (first.text, first.thinking, first.calls) == ("Let me look.", THOUGHT, CALLS)
    assert first.end == client.called
    assert fleet.last.tools[0].parameters == CITY

    results = [client.result(call_id, f"of {call_id}") for call_id, _, _ in CALLS]
    second = client.ask("weather please", *first.turn, *results, stream=stream, tools=True)

    assert second.text == "".join(turns.ANSWER)
    parts = [part for message in fleet.last.messages for part in message.parts]
    calls = [part for part in parts if isinstance(part, ToolCall)]
    assert [(c.id, c.name, json.loads(c.arguments)) for c in calls] == CALLS
    assert [(p.call_id, p.text) for p in parts if isinstance(p, ToolResult)] == [
        (call_id, f"of {call_id}") for call_id, _, _ in CALLS
    ]


def test_a_picture_arrives(client, fleet):
    client.ask(client.picture("hello"))

    parts = [part for message in fleet.last.messages for part in message.parts]
    assert [part.url for part in parts if isinstance(part, Image)] == [PIXEL]


@both
def test_an_answer_that_was_cut_off_says_so(client, stream):
    if client.name == CHAT and stream:
        with pytest.raises(openai.LengthFinishReasonError):
            client.ask("long", stream=stream)
        return
    assert client.ask("long", stream=stream).end == client.cut


def test_an_alias_answers_by_its_own_name(client):
    assert client.ask("hello", model="nick").model == "nick"


@both
def test_a_prompt_that_is_too_long_is_refused(client, stream):
    with pytest.raises((openai.BadRequestError, anthropic.BadRequestError)) as caught:
        client.ask("hello " * 9, model="small", stream=stream)

    said = str(caught.value)
    assert "9" in said
    assert "8" in said
    assert isinstance(caught.value, anthropic.APIError) == (client.name == MESSAGES)
    if client.name == MESSAGES:
        assert "prompt is too long: 9 tokens > 8 maximum" in said
    else:
        assert caught.value.code == "context_length_exceeded"


@both
def test_busy_is_busy_and_says_for_how_long(client, stream):
    with pytest.raises((openai.RateLimitError, anthropic.RateLimitError)) as caught:
        client.ask("busy", stream=stream)

    assert caught.value.response.headers["retry-after"] == "7"


@pytest.mark.parametrize("how", ["die", "die-thinking", "die-calling"])
def test_a_death_in_a_stream_is_an_error(client, how):
    with pytest.raises((openai.OpenAIError, anthropic.AnthropicError)):
        client.ask(how, stream=True, tools=True)


@both
def test_a_death_in_a_whole_answer_is_an_error(client, stream):
    with pytest.raises((openai.OpenAIError, anthropic.AnthropicError)):
        client.ask("die")


def test_who_leaves_ends_the_answer_on_the_server(client, fleet):
    with pytest.raises((openai.APITimeoutError, anthropic.APITimeoutError)):
        client.ask("hang", timeout=0.5)

    fleet.until(lambda: fleet.harness.left)
