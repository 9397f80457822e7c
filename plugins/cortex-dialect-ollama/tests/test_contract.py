"""What cortex relies on, and what is refused."""

from __future__ import annotations

import json

import pytest

import cortex_dialect_ollama
from cortex.chat.request import EmbeddingRequest, Embeddings
from cortex.errors import InvalidRequest, ModelNotFound
from cortex.testing import dialect_contract
from cortex_dialect_ollama.chat import OllamaChat
from cortex_dialect_ollama.embed import OllamaEmbed, OllamaEmbeddings
from cortex_dialect_ollama.generate import OllamaGenerate

HI = [{"role": "user", "content": "hi"}]
PNG = "iVBORw0KGgoAAAA="


def body(**more: object) -> bytes:
    return json.dumps({"model": "m", **more}).encode()


def test_a_chat_keeps_the_contract():
    dialect_contract(OllamaChat(), body(messages=HI, stream=False), body(messages=HI))


def test_a_generation_keeps_the_contract():
    dialect_contract(OllamaGenerate(), body(prompt="hi", stream=False), body(prompt="hi"))


@pytest.mark.parametrize("kind", [OllamaChat, OllamaGenerate])
def test_a_client_that_waits_gets_a_line_without_text(kind):
    dialect = kind()
    asked = dialect.parse_request(body(messages=HI, prompt="hi"), "r")
    line = json.loads(dialect.encoder(asked, 1).keep_alive())

    assert line["done"] is False
    assert line.get("message", {"content": line.get("response")})["content"] == ""


@pytest.mark.parametrize(
    ("name", "chosen"),
    [("m:latest", "m"), ("m", None), ("m:7b", None), ("n:latest", None), (":latest", None)],
)
def test_the_tag_that_says_nothing_is_dropped(name, chosen):
    assert cortex_dialect_ollama.cortex_choose_model(name, ["m", "o"]) == chosen


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"options": {"min_p": 1.1}}, "options.min_p"),
        ({"options": {"typical_p": 0.5}}, "options.typical_p"),
        ({"options": {"tfs_z": 2}}, "options.tfs_z"),
        ({"options": {"repeat_penalty": 0}}, "options.repeat_penalty"),
        ({"options": {"repeat_penalty": 1.1, "repeat_last_n": 64}}, "options.repeat_last_n"),
        ({"options": {"mirostat": 2}}, "options.mirostat"),
        ({"options": {"presence_penalty": 1, "repeat_last_n": 64}}, "options.repeat_last_n"),
        ({"options": {"temperature": 3}}, "options.temperature"),
        ({"options": {"stop": ["x"] * 257}}, "options.stop"),
        ({"options": {"top_p": 0}}, "options.top_p"),
        ({"options": {"stop": 5}}, "options.stop"),
        ({"options": {"num_predict": "many"}}, "options.num_predict"),
        ({"format": "xml"}, "format"),
        ({"think": "hard"}, "think"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"keep_alive": []}, "keep_alive"),
        ({"stream": "yes"}, "stream"),
        ({"model": ""}, "model"),
    ],
)
@pytest.mark.parametrize("kind", [OllamaChat, OllamaGenerate])
def test_what_cannot_be_honoured_is_refused_by_name(kind, asked, param):
    with pytest.raises(InvalidRequest) as caught:
        kind().parse_request(body(**{"messages": HI, "prompt": "hi", **asked}), "r")

    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "developer"}, "messages[1].role"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content"),
        ({"role": "user", "images": ["iVBORw0*"]}, "messages[1].images[0]"),
        ({"role": "user", "images": [PNG, "AAAA"]}, "messages[1].images[1]"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            "messages[1].tool_calls[0].function.arguments",
        ),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[1].tool_calls[0].function"),
    ],
)
def test_a_turn_that_is_none_is_refused_with_its_path(message, param):
    with pytest.raises(InvalidRequest) as caught:
        OllamaChat().parse_request(body(messages=[*HI, message]), "r")

    assert caught.value.param == param


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"context": [1, 2]}, "context"),
        ({"width": 512}, "width"),
        ({"raw": True, "system": "be"}, "system"),
        ({"raw": True, "images": [PNG]}, "images"),
        ({"images": ["no image"]}, "images[0]"),
    ],
)
def test_what_a_generation_cannot_honour_is_refused_by_name(asked, param):
    with pytest.raises(InvalidRequest) as caught:
        OllamaGenerate().parse_request(body(prompt="hi", **asked), "r")

    assert caught.value.param == param


@pytest.mark.parametrize("keep_alive", [0, 0.0, "0", "0s", "0m", "0ms"])
@pytest.mark.parametrize("kind", [OllamaChat, OllamaGenerate])
def test_no_client_unloads_a_model(kind, keep_alive):
    with pytest.raises(InvalidRequest) as caught:
        kind().parse_request(body(keep_alive=keep_alive), "r")

    assert caught.value.param == "keep_alive"
    asked = kind().parse_request(body(messages=HI, prompt="hi", keep_alive=keep_alive), "r")
    assert asked.messages


@pytest.mark.parametrize("keep_alive", [None, -1, 300, "5m", "-1", "10h", "0.5s"])
def test_a_request_for_nothing_only_wants_the_model_loaded(keep_alive):
    assert not OllamaChat().parse_request(body(keep_alive=keep_alive), "r").messages
    assert not OllamaGenerate().parse_request(body(keep_alive=keep_alive), "r").messages


@pytest.mark.parametrize(
    ("dialect", "asked", "inputs", "answer"),
    [
        (
            OllamaEmbed(),
            {"input": "one text"},
            ("one text",),
            {"model": "m", "embeddings": [[0.6, 0.8]], "prompt_eval_count": 2},
        ),
        (
            OllamaEmbed(),
            {"input": ["one"], "dimensions": 2, "truncate": True, "keep_alive": "5m"},
            ("one",),
            {"model": "m", "embeddings": [[0.6, 0.8]], "prompt_eval_count": 2},
        ),
        (OllamaEmbeddings(), {"prompt": "one"}, ("one",), {"embedding": [0.6, 0.8]}),
    ],
)
def test_embeddings_are_asked_for_and_answered(dialect, asked, inputs, answer):
    request = dialect.parse_embedding(body(**asked), "r")
    vectors = Embeddings(vectors=((0.6, 0.8),), prompt_tokens=2)

    dimensions = asked.get("dimensions")
    assert request == EmbeddingRequest(id="r", model="m", inputs=inputs, dimensions=dimensions)
    assert json.loads(dialect.render_embeddings(request, vectors)) == answer


@pytest.mark.parametrize(
    ("dialect", "asked", "param"),
    [
        (OllamaEmbed(), {}, "input"),
        (OllamaEmbed(), {"input": []}, "input"),
        (OllamaEmbed(), {"input": [5]}, "input[0]"),
        (OllamaEmbed(), {"input": "x", "dimensions": 0}, "dimensions"),
        (OllamaEmbeddings(), {"prompt": None}, "prompt"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(dialect, asked, param):
    with pytest.raises(InvalidRequest) as caught:
        dialect.parse_embedding(body(**asked), "r")

    assert caught.value.param == param


@pytest.mark.parametrize(
    "dialect", [OllamaChat(), OllamaGenerate(), OllamaEmbed(), OllamaEmbeddings()]
)
def test_an_error_is_a_sentence(dialect):
    status, said = dialect.render_error(ModelNotFound("no such model", hint="did you mean 'm'?"))

    assert (status, json.loads(said)) == (404, {"error": "no such model (did you mean 'm'?)"})
