"""What plugin authors test with: the contracts hold for our own, and tell what is wrong."""

from __future__ import annotations

import json

import pytest

from cortex.chat.events import Finished, Started, TextDelta, Usage
from cortex.dialects.openai_chat import OpenAIChat
from cortex.dialects.openai_chat.client import OpenAIChatClient
from cortex.dialects.openai_chat.decoder import StreamDecoder
from cortex.dialects.openai_chat.reply import BodyEncoder, StreamEncoder
from cortex.dialects.openai_embeddings import OpenAIEmbeddings
from cortex.errors import UpstreamFailed
from cortex.fleet.model import ModelSpec
from cortex.neuron.harnesses.echo import Echo, EchoOptions
from cortex.testing import (
    FakeHost,
    dialect_contract,
    embedding_contract,
    harness_contract,
    until,
)

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


OTHER = json.dumps({**BODY, "model": "other", "stream": True}).encode()
MUTE = json.dumps({**BODY, "messages": [{"role": "user"}], "stream": True}).encode()
BEGUN = Started(prompt_tokens=0)


def encoding(kind, **wrongs):
    """Return a dialect with something wrong in one of its encoders."""
    broken = type("Broken", (kind,), wrongs)

    def encoder(dialect, request, created):
        is_it = request.stream is (kind is StreamEncoder)
        return (broken if is_it else type(OpenAIChat().encoder(request, created)))(request, created)

    return wrong(encoder=encoder)


def asking(**wrongs):
    """Return a dialect with something wrong in its client half."""
    wrongs = {name: (w if name == "path" else staticmethod(w)) for name, w in wrongs.items()}
    return wrong(client=type("Broken", (OpenAIChatClient,), wrongs)())


def reading(**wrongs):
    """Return a dialect with something wrong in its decoder."""
    return asking(decoder=type("Broken", (StreamDecoder,), wrongs))


@pytest.mark.parametrize(
    ("dialect", "sentence"),
    [
        (wrong(endpoints=()), "no endpoint has the operation 'chat'"),
        (wrong(parse_request=lambda *_: None), "parse_request takes b''; InvalidRequest is due"),
        (wrong(render_error=lambda *_: (500, b"")), "404 is rendered as 500"),
        (wrong(render_stream_error=lambda *_: b""), "a broken stream says why"),
        (wrong(render_model=lambda *_: b"{}"), "a model's row lacks its id"),
        (encoding(StreamEncoder, keep_alive=lambda _: b": hi"), "bytes of a stream end within an"),
        (encoding(BodyEncoder, keep_alive=lambda _: b" "), "a whole body has bytes that keep it"),
        (encoding(StreamEncoder, content_type="text/html"), "content_type is none of text/event"),
        (asking(path="/chat"), "the client half asks at /chat, which is no endpoint"),
        (asking(render_request=lambda *_: WHOLE), "render_request asks for no stream"),
        (asking(render_request=lambda *_: OTHER), "the client half asks for the model 'other'"),
        (asking(render_request=lambda *_: MUTE), "render_request loses messages"),
        (asking(read_error=lambda *_: UpstreamFailed("no")), "read_error reads 404 as 502"),
        (reading(_fail=lambda *_: (0, BEGUN)), "the decoder takes an answer without its end"),
        (reading(_delta=lambda *_: ()), "the decoder loses text"),
        (reading(_call=lambda *_: ()), "the decoder loses calls"),
        (reading(_choice=lambda *_: ()), "the decoder says Failed("),
    ],
)
def test_a_dialect_that_breaks_the_contract_is_told_how(dialect, sentence):
    with pytest.raises(AssertionError) as caught:
        dialect_contract(dialect, WHOLE, STREAMED)

    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("wrongs", "sentence"),
    [
        ({"endpoints": ()}, "no endpoint has the operation 'embed'"),
        ({"parse_embedding": lambda *_: None}, "parse_embedding takes b''; InvalidRequest is due"),
        ({"render_embeddings": lambda *_: b"["}, "render_embeddings returns no JSON"),
        ({"render_error": lambda *_: (500, b"")}, "404 is rendered as 500"),
    ],
)
def test_a_dialect_that_embeds_and_breaks_the_contract_is_told_how(wrongs, sentence):
    with pytest.raises(AssertionError) as caught:
        embedding_contract(
            type("Wrong", (OpenAIEmbeddings,), wrongs)(), b'{"model": "m", "input": ["a", "b"]}'
        )

    assert str(caught.value) == sentence


async def test_until_gives_up():
    with pytest.raises(AssertionError, match=r"nothing came of it in 0\.01 s"):
        await until(lambda: False, 0.01)
