"""The dialects as one table: how the SDK that speaks each asks something in it."""

from __future__ import annotations

from collections.abc import Callable

import anthropic
import attrs
import openai

from tests.clients.fleet import Fleet


@attrs.frozen
class Way:
    """A dialect and the SDK that speaks it."""

    sdk: object
    ask: Callable
    client: Callable

    @property
    def is_openai(self) -> bool:
        return self.sdk is openai


def chat(ai, text: str, model: str = "scripted", **more):
    messages = [{"role": "user", "content": text}]
    return ai.chat.completions.create(model=model, messages=messages, **more)


def responses(ai, text: str, model: str = "scripted", **more):
    return ai.responses.create(model=model, input=text, **more)


def completions(ai, text: str, model: str = "scripted", **more):
    return ai.completions.create(model=model, prompt=text, **more)


def messages(ai, text: str, model: str = "scripted", **more):
    said = [{"role": "user", "content": text}]
    return ai.messages.create(model=model, max_tokens=10, messages=said, **more)


def of_openai(fleet: Fleet, **more) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{fleet.url}/v1", **{"api_key": "none", "timeout": 10, **more})


def of_anthropic(fleet: Fleet, **more) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=fleet.url, **{"api_key": "none", "timeout": 10, **more})


WAYS = {
    "chat": Way(openai, chat, of_openai),
    "completions": Way(openai, completions, of_openai),
    "responses": Way(openai, responses, of_openai),
    "messages": Way(anthropic, messages, of_anthropic),
}
