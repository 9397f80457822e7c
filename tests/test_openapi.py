"""``/openapi.json``: valid, whole, and true of what is answered."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import attrs
import pytest
from jsonschema import Draft202012Validator, ValidationError
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from cortex.chat.events import (
    Finished,
    Started,
    TextDelta,
    ThinkingDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from cortex.chat.request import Embeddings
from cortex.config.schema import AuthSection, LedgerSection, NeuronEntry
from cortex.dialects.anthropic_messages.dialect import AnthropicMessages
from cortex.dialects.openai_chat.dialect import OpenAIChat
from cortex.dialects.openai_completions.dialect import OpenAICompletions
from cortex.dialects.openai_embeddings import OpenAIEmbeddings
from cortex.dialects.openai_responses.dialect import OpenAIResponses
from cortex.fleet.model import ModelSpec
from cortex.fleet.principal import Key
from tests.gateway.running import running
from tests.neuron.serving import serving
from tests.test_house import gateway_routes, neuron_routes

MESSAGES = [{"role": "user", "content": "one two three"}]
VERSION = {"anthropic-version": "2023-06-01"}


@attrs.frozen
class Answered:
    """A request and its answer."""

    path: str
    status: int
    kind: str
    body: bytes


class Document:
    """A document, and who checks answers against it."""

    def __init__(self, url: str, client: aiohttp.ClientSession, said: dict[str, Any]) -> None:
        self.said = said
        self.asked: set[str] = set()
        self.url, self.client = url, client

    def operation(self, what: str) -> Mapping[str, Any]:
        method, path = what.split()
        return self.said["paths"][path][method.lower()]

    def check(self, schema: Mapping[str, Any], value: Any) -> None:
        whole = {**schema, "components": closed(self.said["components"])}
        Draft202012Validator(whole).validate(value)

    async def ask(
        self, what: str, status: int = 200, *, path: str = "", headers=None, **body: Any
    ) -> Any:
        """Ask; hold request and answer to what the document says of *what*."""
        self.asked.add(what)
        operation = self.operation(what)
        method, place = what.split()
        for name, query in [(p["name"], p) for p in operation["parameters"] if p["in"] == "query"]:
            assert query["schema"], name
        if body:
            content = operation["requestBody"]["content"]["application/json"]
            self.check(content["schema"], body)
        sent = {"json": body} if body else {}
        url = self.url + (path or place)
        async with self.client.request(method, url, headers=headers, **sent) as response:
            assert response.status == status, await response.text()
            known = operation["responses"]
            content = known.get(str(response.status), known["default"])["content"]
            assert response.content_type in content
            if response.content_type == "text/event-stream":
                return await response.content.readuntil(b"\n\n")
            schema = content[response.content_type]["schema"]
            said = await response.read()
            is_json = response.content_type == "application/json"
            value = json.loads(said) if is_json else said.decode()
            self.check(schema, value)
            return value


def closed(schema: Any) -> Any:
    """Return schemas that take no member they do not name."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inside = {name: closed(part) for name, part in schema.items()}
    is_open = schema.get("title") in OPEN
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        return inside if is_open else {**inside, "additionalProperties": False}
    return inside


OPEN = ("ErrorCause", "ResponseBody")  # figures of an error; what a response repeats


async def document_at(url: str, client: aiohttp.ClientSession) -> Document:
    async with client.get(f"{url}/openapi.json") as response:
        assert (response.status, response.content_type) == (200, "application/json")
        return Document(url, client, await response.json())


@asynccontextmanager
async def fleet(tmp_path) -> AsyncIterator[tuple[Document, Document]]:
    """Run a gateway before a neuron; yield the documents of both."""
    async with serving(delay_s=0.01) as neuron:
        await neuron.load("m")
        node = NeuronEntry(name="beast", endpoint=neuron.url)
        ledger = LedgerSection(path=tmp_path / "ledger.db")
        async with running(
            node,
            models=(ModelSpec(id="m", harness="echo"),),
            aliases={"small": "m"},
            ledger=ledger,
        ) as gateway:
            yield (
                await document_at(gateway.url, gateway.client),
                await document_at(neuron.url, neuron.client),
            )


async def test_both_documents_are_valid(tmp_path):
    async with fleet(tmp_path) as documents:
        for each in documents:
            validate(each.said, cls=OpenAPIV31SpecValidator)


async def test_every_route_is_in_the_document_and_no_other(tmp_path):
    async with fleet(tmp_path) as documents:
        for each, routes in zip(documents, (gateway_routes, neuron_routes), strict=True):
            told = {
                f"{method.upper()} {path}"
                for path, methods in each.said["paths"].items()
                for method in methods
            }
            assert told == await routes()


async def test_a_member_the_document_does_not_name_would_be_found(document):
    program = {"$ref": "#/components/schemas/Program"}
    document.check(program, {"name": "x", "version": "1"})
    for wrong in ({"name": "x"}, {"name": "x", "version": "1", "more": 1}, {"name": 1}):
        with pytest.raises(ValidationError):
            document.check(program, wrong)


async def test_operations_have_names_of_their_own(tmp_path):
    async with fleet(tmp_path) as documents:
        for each in documents:
            every = [o for methods in each.said["paths"].values() for o in methods.values()]
            assert len({operation["operationId"] for operation in every}) == len(every)


async def test_the_document_is_shown_to_whoever_asks_and_says_so():
    key = Key(name="zed", sha256="0" * 64, admin=True)
    async with serving(token="t") as neuron, aiohttp.ClientSession() as stranger:
        async with running(neuron.url, auth=AuthSection(require=True, keys=(key,))) as gateway:
            for url in (gateway.url, neuron.url):
                said = (await document_at(url, stranger)).said
                for path, methods in said["paths"].items():
                    for method, operation in methods.items():
                        if method == "get" and "{" not in path:
                            async with stranger.get(url + path) as response:
                                is_open = operation["security"] == []
                                assert (response.status == 401) is not is_open, path


async def ask_dialects(document: Document) -> None:
    ask = document.ask
    await ask("GET /v1/models")
    await ask("GET /v1/models", headers=VERSION)
    await ask("GET /v1/models/{model}", path="/v1/models/m")
    await ask("GET /v1/models/{model}", path="/v1/models/m", headers=VERSION)
    await ask("GET /v1/models/{model}", 404, path="/v1/models/x")
    await ask("GET /v1/models/{model}", 404, path="/v1/models/x", headers=VERSION)
    chat = {"model": "m", "messages": MESSAGES}
    await ask("POST /v1/chat/completions", **chat)
    await ask("POST /v1/chat/completions", **chat, stream=True)
    await ask("POST /v1/chat/completions", 404, **{**chat, "model": "x"})
    await ask("POST /v1/completions", model="m", prompt="one two three", max_tokens=2)
    await ask("POST /v1/embeddings", 400, model="m", input="one")
    await ask("POST /v1/messages", **chat, max_tokens=2)
    await ask("POST /v1/messages", **chat, max_tokens=2, stream=True)
    await ask("POST /v1/messages", 404, **{**chat, "model": "x"}, max_tokens=2)
    await ask("POST /v1/messages/count_tokens", **chat)
    made = await ask("POST /v1/responses", model="m", input="one two")
    kept = f"/v1/responses/{made['id']}"
    await ask("GET /v1/responses/{id}", path=kept)
    await ask("GET /v1/responses/{id}/input_items", path=f"{kept}/input_items?limit=1")
    await ask("POST /v1/responses/{id}/cancel", 400, path=f"{kept}/cancel")
    await ask("DELETE /v1/responses/{id}", path=kept)
    await ask("GET /v1/responses/{id}", 404, path=kept)


async def test_what_a_gateway_takes_and_answers_is_what_its_document_says(tmp_path):
    async with fleet(tmp_path) as (document, _):
        ask = document.ask
        await ask_dialects(document)
        for path in ("/", "/health", "/openapi.json"):
            await ask(f"GET {path}")
        for path in ("fleet", "events", "logs", "plugins", "usage", "config", "requests"):
            await ask(f"GET /api/v1/{path}")
        await ask("GET /api/v1/usage", 400, path="/api/v1/usage?days=0")
        await ask("GET /api/v1/explain", path="/api/v1/explain?model=m")
        for what in ("load", "pin", "unpin", "unload"):
            path = f"/api/v1/models/m/{what}"
            await ask(f"POST /api/v1/models/{{id}}/{what}", path=path, node="beast")
        await ask("POST /api/v1/reload")
        for what in ("drain", "resume"):
            path = f"/api/v1/nodes/beast/{what}"
            await ask(f"POST /api/v1/nodes/{{name}}/{what}", path=path)
        await ask("POST /api/v1/nodes/{name}/drain", 404, path="/api/v1/nodes/x/drain")
        await ask("DELETE /api/v1/requests/{id}", 404, path="/api/v1/requests/x")
        long = [{"role": "user", "content": "word " * 5000}]
        name = {"x-request-id": "mine"}
        chat = {"model": "m", "messages": long, "stream": True}
        await ask("POST /api/v1/models/{id}/load", path="/api/v1/models/m/load")
        async with document.client.post(
            f"{document.url}/v1/chat/completions", json=chat, headers=name
        ) as response:
            assert response.status == 200
            await ask("DELETE /api/v1/requests/{id}", path="/api/v1/requests/mine")
        assert document.asked == await gateway_routes()


async def test_what_a_neuron_takes_and_answers_is_what_its_document_says(tmp_path):
    async with fleet(tmp_path) as (_, document):
        ask = document.ask
        await ask_dialects(document)
        for path in ("/", "/health", "/discovery", "/models", "/events", "/logs", "/metrics"):
            await ask(f"GET {path}")
        await ask("GET /openapi.json")
        await ask("POST /models/load", model_id="n", harness="echo")
        await ask("POST /models/load", 202, model_id="o", harness="echo", wait=False)
        await ask("POST /models/load", 400, model_id="p", harness="nothing")
        await ask("POST /models/tokenizer", model_id="m", harness="echo")
        await ask("GET /models/{id}/endpoint", path="/models/m/endpoint")
        await ask("POST /models/unload", model_id="n")
        path = "/devices/0/restart"
        await ask("POST /devices/{index}/restart", 409, path=path)
        assert document.asked == await neuron_routes()


# Answers the harness echo never gives.

EVENTS = (
    Started(prompt_tokens=3),
    ThinkingDelta("hm"),
    TextDelta("so ", (TokenLogprob(token="so ", logprob=-0.5, data=b"so "),)),
    ToolCallStarted(index=0, id="call_1", name="look"),
    ToolCallDelta(index=0, arguments='{"at": 1}'),
)
BODIES = {
    OpenAIChat: {"messages": MESSAGES, "logprobs": True},
    OpenAICompletions: {"prompt": "a"},
    OpenAIResponses: {"input": "a"},
    AnthropicMessages: {"messages": MESSAGES, "max_tokens": 9},
}


@pytest.fixture
async def document(tmp_path):
    async with fleet(tmp_path) as (document, _):
        yield document


@pytest.mark.parametrize("dialect", BODIES)
@pytest.mark.parametrize("reason", ["tool_calls", "length", "stop"])
async def test_thoughts_calls_and_ends_are_as_the_document_says(document, dialect, reason):
    speaks = dialect()
    request = speaks.parse_request(json.dumps({"model": "m", **BODIES[dialect]}).encode(), "id")
    encoder = speaks.encoder(request, 1)
    usage = Usage(prompt_tokens=3, completion_tokens=4, reasoning_tokens=1)
    end = Finished(reason=reason, usage=usage, stop_string="." if reason == "stop" else None)
    body = b"".join(encoder.feed(event) for event in (*EVENTS, end))
    endpoint = next(e for e in speaks.endpoints if e.operation == "chat")
    operation = document.operation(f"POST {endpoint.path}")
    content = operation["responses"]["200"]["content"]["application/json"]
    document.check(content["schema"], json.loads(body))


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_vectors_are_as_the_document_says(document, encoding):
    asked = json.dumps({"model": "m", "input": ["a"], "encoding_format": encoding}).encode()
    speaks = OpenAIEmbeddings()
    vectors = Embeddings(vectors=((0.5, 1.0),), prompt_tokens=1)
    body = speaks.render_embeddings(speaks.parse_embedding(asked, "id"), vectors)
    operation = document.operation("POST /v1/embeddings")
    content = operation["responses"]["200"]["content"]["application/json"]
    document.check(content["schema"], json.loads(body))
