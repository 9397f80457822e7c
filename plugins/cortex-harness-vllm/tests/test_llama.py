"""
llama.cpp for real, with SmolLM2-135M on the CPU.

Its own server comes in the wheel `xllamacpp`, which the extra `test` installs.  llama-cpp-python
has to be compiled; where there is one, in this Python or the one that CORTEX_LLAMA_CPP_PYTHON
names, it is run, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec

import attrs
import pytest
from harness_bench import HERE, MODEL, request

import cortex_harness_vllm as plugin
from cortex.chat.events import Started, TextDelta
from cortex.chat.request import EmbeddingRequest, Message, Sampling, Text
from cortex.errors import ContextLengthExceeded, LoadFailed, OperationUnsupported
from cortex.fleet.model import Checkpoint, ModelSpec, Progress
from cortex.testing import FakeHost, harness_contract, until
from cortex_harness_vllm.harness import ServerHarness
from cortex_harness_vllm.options import LlamaCppPythonOptions, LlamaServerOptions
from tests.conftest import demo_checkpoint, model_cache, shared

__all__ = ["demo_checkpoint", "model_cache", "shared"]

COMMAND = (sys.executable, str(HERE / "llama_server.py"))
PYTHON = os.environ.get("CORTEX_LLAMA_CPP_PYTHON", sys.executable)
SPEC = ModelSpec(id=MODEL, context=256)
pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(120),
    pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp is not installed"),
]


def has_llama_cpp_python() -> bool:
    code = "import importlib.util as u; raise SystemExit(u.find_spec('llama_cpp') is None)"
    return not subprocess.run([PYTHON, "-c", code], check=False).returncode


@asynccontextmanager
async def llama_server(*args: str) -> AsyncIterator[ServerHarness]:
    host = FakeHost()
    harness = plugin.make_llama_server(LlamaServerOptions(command=COMMAND, args=args), host)
    try:
        yield harness
    finally:
        await harness.aclose()
        await until(lambda: not host._tasks)


def said_by(events) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def test_llama_server_answers_and_counts(demo_checkpoint: Checkpoint):
    async with llama_server() as harness:
        stages: list[Progress] = []
        running = await harness.load(SPEC, demo_checkpoint, 0, stages.append)
        assert running.context == 256
        assert running.used_bytes > demo_checkpoint.size_bytes
        assert [p.stage for p in stages][:2] == ["starting", "reading weights"]

        greedy = Sampling(temperature=0, max_tokens=6, logprobs=1)
        chat = request("What is the capital of France?", greedy)
        events = [event async for event in harness.generate(chat)]
        assert events[0] == Started(prompt_tokens=await harness.count(chat))
        assert all(event.logprobs for event in events[1:-1])
        assert (events[-1].reason, events[-1].usage.completion_tokens) == ("length", 6)

        said = Message(role="assistant", parts=(Text(said_by(events[:4])),))
        rest = attrs.evolve(chat, messages=(*chat.messages, said), resumes=True)
        resumed = [event async for event in harness.generate(rest)]
        assert said_by(events) == said.text + said_by(resumed)
        assert resumed[-1].usage.completion_tokens == 6

        bare = request(prompts=((504, 1232, 2311),), sampling=greedy)
        events = [event async for event in harness.generate(bare)]
        assert events[0].prompt_tokens == 3
        assert events[0].prompt_text
        assert events[-1].usage.completion_tokens == 6

        left = harness.generate(request("Count to a thousand.", Sampling(max_tokens=200)))
        assert isinstance(await anext(left), Started)
        await left.aclose()
        with pytest.raises(ContextLengthExceeded):
            await anext(harness.generate(request("word " * 400)))
        with pytest.raises(OperationUnsupported):
            await harness.embed(EmbeddingRequest(id="e", model=MODEL, inputs=("a",)))


async def test_llama_server_keeps_the_contract(demo_checkpoint: Checkpoint):
    async with llama_server() as harness:
        await harness_contract(harness, SPEC, demo_checkpoint)


async def test_llama_server_makes_vectors(demo_checkpoint: Checkpoint):
    async with llama_server("--embedding", "--pooling", "mean") as harness:
        running = await harness.load(SPEC, demo_checkpoint, 0, lambda _: None)
        assert running.capabilities == ("embedding",)
        asked = EmbeddingRequest(id="e", model=MODEL, inputs=("a cat", "a dog"), dimensions=8)
        made = await harness.embed(asked)
        assert [len(vector) for vector in made.vectors] == [8, 8]
        assert sum(part * part for part in made.vectors[0]) == pytest.approx(1)


async def test_llama_server_says_what_is_wrong_with_a_file(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 64)
    broken = Checkpoint(path=path, format="gguf", size_bytes=68)
    async with llama_server() as harness:
        with pytest.raises(LoadFailed, match=r"llama-server with org/model: .*failed to load"):
            await harness.load(SPEC, broken, 0, lambda _: None)


@pytest.mark.skipif(not has_llama_cpp_python(), reason="llama-cpp-python is not installed")
async def test_llama_cpp_python_keeps_the_contract(demo_checkpoint: Checkpoint):
    options = LlamaCppPythonOptions(command=(PYTHON, "-m", "llama_cpp.server"))
    harness = plugin.make_llama_cpp_python(options, FakeHost())
    await harness_contract(harness, SPEC, demo_checkpoint)
