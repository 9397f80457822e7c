"""What plugin authors test with: the contracts hold for our own, and tell what is wrong."""

from __future__ import annotations

import json

import pytest

from cortex.chat.events import Finished, TextDelta, Usage
from cortex.dialects.openai_chat import OpenAIChat
from cortex.fleet.model import ModelSpec
from cortex.neuron.harnesses.echo import Echo, EchoOptions
from cortex.testing import FakeHost, dialect_contract, harness_contract, until

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
WHOLE, STREAMED = json.dumps(BODY).encode(), json.dumps({**BODY, "stream": True}).encode()


async def test_echo_keeps_the_contract_of_a_harness():
    await harness_contract(Echo(EchoOptions(), FakeHost()), ModelSpec(id="m"))


async def test_a_harness_that_does_not_start_is_told():
    class Hasty(Echo):
        async def generate(self, request):
            yield TextDelta("now")
            yield Finished(reason="stop", usage=Usage())

    with pytest.raises(AssertionError, match="comes first; Started is due"):
        await harness_contract(Hasty(EchoOptions(), FakeHost()), ModelSpec(id="m"))


async def test_a_harness_that_forgets_who_left_is_told():
    class Leaky(Echo):
        async def generate(self, request):
            inner = super().generate(request)
            try:
                async for event in inner:
                    yield event
            finally:
                self._in_flight[request.model] += 1

    with pytest.raises(AssertionError, match="nothing came of it"):
        await harness_contract(Leaky(EchoOptions(), FakeHost()), ModelSpec(id="m"))


def wrong(**methods):
    return type("Wrong", (OpenAIChat,), methods)()


@pytest.mark.parametrize(
    ("dialect", "sentence"),
    [
        (wrong(endpoints=()), "no endpoint has the operation 'chat'"),
        (wrong(parse_request=lambda *_: None), "parse_request takes b''; InvalidRequest is due"),
        (wrong(render_error=lambda *_: (500, b"")), "404 is rendered as 500"),
        (wrong(render_stream_error=lambda *_: b""), "a broken stream says why"),
        (wrong(render_model=lambda *_: b"{}"), "a model's row lacks its id"),
    ],
)
def test_a_dialect_that_breaks_the_contract_is_told_how(dialect, sentence):
    with pytest.raises(AssertionError) as caught:
        dialect_contract(dialect, WHOLE, STREAMED)

    assert str(caught.value) == sentence


async def test_until_gives_up():
    with pytest.raises(AssertionError, match=r"nothing came of it in 0\.01 s"):
        await until(lambda: False, 0.01)
