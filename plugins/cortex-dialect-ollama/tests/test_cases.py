"""Golden cases; `tests.dialects.test_cases` says what is in one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cortex_dialect_ollama.chat import OllamaChat
from cortex_dialect_ollama.generate import OllamaGenerate
from tests.dialects.test_cases import hold

FILES = sorted((Path(__file__).parent / "cases").glob("*/*.json"))
DIALECTS = {"ollama-chat": OllamaChat(), "ollama-generate": OllamaGenerate()}


@pytest.mark.parametrize("path", FILES, ids=[f"{p.parent.name}/{p.stem}" for p in FILES])
def test_a_case_holds(path):
    hold({**json.loads(path.read_text()), "dialect": DIALECTS[path.parent.name]})


def test_every_dialect_has_cases():
    assert {path.parent.name for path in FILES} == DIALECTS.keys()
