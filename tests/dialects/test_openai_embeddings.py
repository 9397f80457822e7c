"""OpenAI Embeddings: vectors survive both of their forms."""

from __future__ import annotations

import array
import base64
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.chat.request import Embeddings
from cortex.dialects.openai_embeddings import OpenAIEmbeddings
from cortex.errors import InvalidRequest, ModelNotFound
from cortex.testing import embedding_contract

DIALECT = OpenAIEmbeddings()
vectors = st.lists(
    st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3), min_size=1, max_size=4
)


def rendered(rows: list[list[float]], **more: object) -> list[object]:
    body = json.dumps({"model": "m", "input": ["a"] * len(rows), **more}).encode()
    request = DIALECT.parse_embedding(body, "r1")
    made = Embeddings(vectors=tuple(map(tuple, rows)), prompt_tokens=len(rows))
    said = json.loads(DIALECT.render_embeddings(request, made))
    assert [row["index"] for row in said["data"]] == list(range(len(rows)))
    return [row["embedding"] for row in said["data"]]


def test_it_keeps_the_contract():
    embedding_contract(OpenAIEmbeddings(), b'{"model": "m", "input": "a"}')


@given(vectors)
def test_numbers_are_the_vectors(rows):
    assert rendered(rows) == rendered(rows, encoding_format="float") == rows


@given(vectors)
def test_base64_is_little_endian_float32_as_the_sdks_read_it(rows):
    read = []
    for text in rendered(rows, encoding_format="base64"):
        numbers = array.array("f", base64.b64decode(text))
        if sys.byteorder == "big":
            numbers.byteswap()
        read.append(numbers.tolist())

    assert read == rows


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"model": "m"}', b'{"input": "a"}', b"\xff"])
def test_what_is_no_request_is_refused(raw):
    with pytest.raises(InvalidRequest):
        DIALECT.parse_embedding(raw, "r1")


def test_an_error_has_the_envelope_of_openai():
    status, said = DIALECT.render_error(ModelNotFound("no such model", param="model"))

    assert (status, json.loads(said)["error"]["code"]) == (404, "model_not_found")
