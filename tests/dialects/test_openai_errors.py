"""Errors of other servers: each wording, and the error of ours it is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex import errors
from cortex.dialects.openai import OpenAIErrors
from cortex.dialects.openai_errors import read_error
from cortex.errors import ContextLengthExceeded, CortexError, InvalidRequest, ModelNotFound

TREE = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, CortexError)]


def envelope(message: str, **more: object) -> bytes:
    return json.dumps({"error": {"message": message, "type": "x", **more}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, envelope("temperature is odd", param="temperature"), "InvalidRequest"),
        (422, envelope("no"), "InvalidRequest"),
        (401, envelope("Incorrect API key", code="invalid_api_key"), "NotAuthenticated"),
        (401, b"", "NotAuthenticated"),
        (403, envelope("not yours"), "PermissionDenied"),
        (404, envelope("The model `x` does not exist.", code=404), "ModelNotFound"),
        (404, envelope("gone", code="model_not_found"), "ModelNotFound"),
        (404, envelope("gone", param="model"), "ModelNotFound"),
        (404, b'{"detail":"Not Found"}', "RouteNotFound"),
        (405, b'{"detail":"Method Not Allowed"}', "InvalidRequest"),
        (413, b"<html>Request Entity Too Large</html>", "RequestTooLarge"),
        (429, envelope("slow down", code="insufficient_quota"), "InsufficientQuota"),
        (429, envelope("wait", code="queue_full"), "QueueFull"),
        (500, envelope("CUDA error"), "UpstreamFailed"),
        (502, b"<html>Bad Gateway</html>", "UpstreamFailed"),
        (503, envelope("Loading model", code=503), "ModelLoading"),
        (503, b"", "NoNodeAvailable"),
        (529, envelope("Overloaded"), "NoNodeAvailable"),
        (200, envelope("died"), "UpstreamFailed"),
        (200, envelope("odd", code=400), "InvalidRequest"),
        (200, envelope("busy", code=503), "NoNodeAvailable"),
        (200, envelope("the worker died", code="upstream_died"), "UpstreamDied"),
        (422, envelope("no tools here", code="tools_unsupported"), "ToolsUnsupported"),
    ],
)
def test_a_status_and_an_envelope_are_an_error_of_ours(status, body, kind):
    assert type(read_error(status, body)).__name__ == kind


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, envelope("too hot", param="temperature"), "too hot"),
        (400, b'{"error":"model is required"}', "model is required"),
        (400, b'{"object":"error","message":"no","type":"BadRequestError","code":400}', "no"),
        (404, b'{"detail":"Not Found"}', "Not Found"),
        (422, b'{"detail":[{"loc":["body"],"msg":"no"}]}', "[{'loc': ['body'], 'msg': 'no'}]"),
        (502, b"<h1>Bad Gateway</h1>\n", "<h1>Bad Gateway</h1>"),
        (500, b"gr\xfcn", "gr\ufffdn"),
        (500, b"", "the server answered 500"),
        (500, b"[1]", "the server answered 500"),
        (500, b"{}", "the server answered 500"),
        (500, b'{"error":{"message":null}}', "the server answered 500"),
        (500, b"[" * 100_000, "[" * 300),
    ],
)
def test_the_message_is_found_wherever_a_server_puts_it(status, body, message):
    assert read_error(status, body).message == message


@pytest.mark.parametrize(
    ("message", "more", "figures"),
    [
        ("maximum context length is 8192 tokens, the prompt has 9001", {}, (9001, 8192)),
        (
            "maximum context length is 4096 tokens; requested 5000 tokens (4900 in the messages)",
            {},
            (4900, 4096),
        ),
        (
            "The maximum context length is 2048 tokens. However, it has 9001 input tokens.",
            {"code": 400},
            (9001, 2048),
        ),
        (
            "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
            {},
            (9000, 8192),
        ),
        (
            "request (9001 tokens) exceeds the available context size (4096 tokens)",
            {"type": "exceed_context_size_error", "n_prompt_tokens": 9002, "n_ctx": 4097},
            (9002, 4097),
        ),
        ("request (9001 tokens) exceeds the available context size (512 tokens)", {}, (9001, 512)),
        (
            "It exceeds the context length of 8192 tokens: 9001 tokens from the input messages.",
            {},
            (9001, 8192),
        ),
        ("prompt is too long: 9001 tokens > 8192 maximum", {}, (9001, 8192)),
        (
            "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens and 9",
            {},
            (5000, 4096),
        ),
        ("it is too much", {"code": "context_length_exceeded"}, (None, None)),
        ("the input length exceeds the context length", {}, (None, None)),
    ],
)
def test_an_overflow_is_known_by_code_or_wording_and_brings_its_figures(message, more, figures):
    error = read_error(400, envelope(message, **more))

    assert isinstance(error, ContextLengthExceeded)
    said = error.details.get("prompt_tokens"), error.details.get("context_tokens")
    assert said == figures


@pytest.mark.parametrize(
    "message", ["context is not a field", "max_tokens must be at least 1", "length is not known"]
)
def test_other_complaints_are_no_overflow(message):
    assert type(read_error(400, envelope(message))) is InvalidRequest


@pytest.mark.parametrize("kind", [k for k in TREE if k.status != 500], ids=lambda k: k.__name__)
def test_what_we_render_we_read(kind):
    error = kind("it went wrong", param="model", details={"progress": 0.5})
    if kind is ContextLengthExceeded:
        error.details = {"prompt_tokens": 9, "context_tokens": 8}

    read = read_error(*OpenAIErrors().render_error(error))

    assert type(read).code == kind.code
    assert (read.message, read.param, read.details) == ("it went wrong", "model", error.details)


def test_a_param_that_is_no_path_is_left_out():
    assert read_error(404, envelope("no such model", param=["model"])).param is None
    assert isinstance(read_error(404, envelope("no such model", param=["model"])), ModelNotFound)


@given(st.integers(400, 599), st.binary(max_size=60) | st.text().map(str.encode))
def test_no_answer_is_unreadable(status, body):
    assert read_error(status, body).message
