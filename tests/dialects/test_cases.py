"""
Golden cases: tests/dialects/cases/DIALECT/FEATURE.json, a request and its answer in each.

A case has any of these members, and each is checked:

``about``    What it shows; required.
``request``  A body as a client sends it.
``parsed``   The `ChatRequest` it is, as `plain` writes it.
``refused``  Instead: ``{"class", "param", "message"}`` of the error it is; any of the three.
``upstream`` The body the dialect's client half sends for that request.
``events``   What the model says: ``[name, {fields}]`` or ``[name, {fields}, choice]``.
``stream``   The events streamed: a list of server-sent events, without their blank line; of lines
             without their end, where that is what the dialect sends.
``vectors``  What the model makes of a request to embed, instead of ``events``.
``reply``    The events, or vectors, as one JSON body.
``decoded``  What the client half makes of ``stream``, where that is not ``events``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import attrs
import msgspec
import pytest

from cortex import errors
from cortex.chat import events
from cortex.chat.request import Embeddings
from cortex.errors import CortexError, InvalidRequest
from cortex.plugins import Plugins

CASES = Path(__file__).parent / "cases"
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type)]
BY_CODE = {kind.code: kind for kind in KINDS if issubclass(kind, CortexError)}
FILES = sorted(CASES.glob("*/*.json"))


def plain(value):
    """Return attrs values as JSON: defaults left out, parts of a turn under their class's name."""
    if attrs.has(type(value)):
        said = {}
        for field in attrs.fields(type(value)):
            default = field.default
            if isinstance(default, attrs.Factory):
                default = default.factory()
            inner = getattr(value, field.name)
            if inner != default and field.name not in ("id", "private"):
                is_parts = field.name == "parts"
                said[field.name] = (
                    [{type(p).__name__: plain(p)} for p in inner] if is_parts else plain(inner)
                )
        if hasattr(value, "id") and not hasattr(value, "sampling"):
            said = {"id": value.id, **said}
        return said
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def event_of(name, fields, choice=0):
    """Return a choice and its event, as `cortex.api.ReplyDecoder.feed` does."""
    if name == "Failed":
        return choice, events.Failed(BY_CODE[fields["code"]](fields["message"]))
    return choice, msgspec.convert(fields, getattr(events, name))


def comparable(pairs):
    """Return decoded events so that errors compare by what they say; timings do not travel."""
    return [
        (choice, (type(e.error).__name__, e.error.message) if isinstance(e, events.Failed) else e)
        for choice, e in pairs
    ]


@pytest.fixture(params=FILES, ids=[f"{p.parent.name}/{p.stem}" for p in FILES])
def case(request):
    said = json.loads(request.param.read_text())
    said["dialect"] = Plugins().choose("dialect", request.param.parent.name, "cases").build()
    return said


def test_a_case_holds(case):
    hold(case)


def hold(case):
    """Check a case; a plugin's tests may have cases of their own."""
    dialect, request = case["dialect"], case.get("request", {"model": "m"})
    body = json.dumps(request).encode()
    known = {"about", "request", "parsed", "refused", "upstream", "events", "stream", "reply"}
    assert set(case) - known <= {"dialect", "decoded", "vectors"}
    parse = getattr(dialect, "parse_embedding", None) or dialect.parse_request
    if (refused := case.get("refused")) is not None:
        with pytest.raises(InvalidRequest) as caught:
            parse(body, "id-1")
        error: CortexError = caught.value
        said = {"class": type(error).__name__, "param": error.param, "message": str(error)}
        assert {key: said[key] for key in refused} == refused
        return
    chat = parse(body, "id-1")
    if "parsed" in case:
        assert plain(chat) == case["parsed"]
    if "vectors" in case:
        made = Embeddings(vectors=tuple(map(tuple, case["vectors"])), prompt_tokens=5)
        assert json.loads(dialect.render_embeddings(chat, made)) == case["reply"]
        return
    if "upstream" in case:
        assert json.loads(dialect.client.render_request(chat)) == case["upstream"]
    happened = [event_of(*event) for event in case.get("events", ())]
    if "reply" in case:
        encoder = dialect.encoder(attrs.evolve(chat, stream=False), 1)
        whole = b"".join(encoder.feed(event, choice) for choice, event in happened)
        assert json.loads(whole) == case["reply"]
    if "stream" in case:
        chat = attrs.evolve(chat, stream=True)
        encoder = dialect.encoder(chat, 1)
        streamed = b"".join(encoder.feed(event, choice) for choice, event in happened)
        ends = "\n\n" if encoder.content_type == "text/event-stream" else "\n"
        assert streamed.decode().removesuffix(ends).split(ends) == case["stream"]
        if dialect.client is not None:
            decoder = dialect.client.decoder(chat)
            decoded = [*decoder.feed(streamed), *decoder.end()]
            wanted = [event_of(*event) for event in case.get("decoded", case["events"])]
            assert comparable(decoded) == comparable(wanted)


def test_there_are_cases():
    assert FILES
