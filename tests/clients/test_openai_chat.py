"""The openai SDK's chat completions."""

from __future__ import annotations

import openai
import pytest

from tests.clients import turns

TOLD = "".join(turns.HELLO)


@pytest.fixture
def ai(fleet):
    with openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0, timeout=10) as ai:
        yield ai


def ask(ai, text: str, **more):
    messages = [{"role": "user", "content": text}]
    return ai.chat.completions.create(model="scripted", messages=messages, **more)


def test_a_whole_answer(ai, fleet):
    answer = ask(ai, "hello you")

    assert answer.choices[0].message.content == TOLD
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, len(turns.HELLO))
    assert answer.model == "scripted"
    assert fleet.last.messages[0].text == "hello you"
    assert fleet.last.id == answer._request_id
