"""Token counts for models that are not loaded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import attrs
import pytest

from cortex.chat.request import ChatRequest, Message, Text
from cortex.errors import LoadFailed, ModelNotFound, RepoFetchFailed
from cortex.fleet.model import Checkpoint, ModelSpec
from cortex.neuron.counters import KEPT, Counters
from tests.neuron.serving import serving

SPEC = ModelSpec(id="m")


@attrs.define
class Shelf:
    """A source and a harness; what is asked of them is kept."""

    needs_weights: bool = True
    failures: list[Exception] = attrs.field(factory=list)
    fetched: list[tuple[str, bool]] = attrs.field(factory=list)
    may_read: asyncio.Event = attrs.field(factory=asyncio.Event)

    def fetch(self, spec, report, *, text_only=False):
        self.fetched.append((spec.id, text_only))
        if self.failures:
            raise self.failures.pop()
        return Checkpoint(path=Path(spec.id), format="safetensors", size_bytes=0)

    async def counter(self, spec, checkpoint):
        await self.may_read.wait()

        async def count(_request):
            return len(str(checkpoint.path))

        return count


@pytest.fixture
def shelf():
    shelf = Shelf()
    shelf.may_read.set()
    return shelf


@pytest.fixture
def counters(shelf):
    return Counters(lambda work, name: asyncio.create_task(work, name=name), lambda _: shelf)


async def test_a_model_is_read_once_however_many_ask_and_without_its_weights(counters, shelf):
    shelf.may_read.clear()
    asking = [asyncio.create_task(counters.prepare(SPEC, shelf)) for _ in range(5)]
    await asyncio.sleep(0)
    asking.pop().cancel()
    shelf.may_read.set()
    await asyncio.gather(*asking)
    await counters.prepare(SPEC, shelf)
    assert shelf.fetched == [("m", True)]
    assert await counters.get("m")(None) == 1


async def test_it_is_read_again_if_something_else_is_asked_for(counters, shelf):
    await counters.prepare(SPEC, shelf)
    await counters.prepare(ModelSpec(id="m", quant="Q8_0"), shelf)
    assert len(shelf.fetched) == 2


@pytest.mark.parametrize(
    ("failure", "seen"),
    [(RepoFetchFailed("gone"), RepoFetchFailed), (ZeroDivisionError("x"), LoadFailed)],
)
async def test_a_failure_is_told_and_the_next_one_tries_again(failure, seen, counters, shelf):
    shelf.failures.append(failure)
    with pytest.raises(seen):
        await counters.prepare(SPEC, shelf)
    assert counters.get("m") is None
    await counters.prepare(SPEC, shelf)
    assert counters.get("m") is not None


async def test_the_models_counted_last_are_kept(counters, shelf):
    for number in range(KEPT):
        await counters.prepare(ModelSpec(id=f"m{number}"), shelf)
    assert counters.get("m0") is not None
    await counters.prepare(ModelSpec(id="one more"), shelf)
    kept = [number for number in range(KEPT) if counters.get(f"m{number}")]
    assert kept == [0, *range(2, KEPT)]


async def test_the_route_makes_a_model_countable_and_loads_nothing():
    turn = Message(role="user", parts=(Text("one two three"),))
    request = ChatRequest(id="r", model="m", messages=(turn,))
    async with serving() as node:
        models = node.neuron.models
        with pytest.raises(ModelNotFound):
            models.counter("m")
        answer = await node.post("/models/tokenizer", model_id="m", harness="echo")
        assert answer == {"status": "ready", "model_id": "m"}
        assert await models.counter("m")(request) == 3
        messages = [{"role": "user", "content": "one two three"}]
        asked = {"model": "m", "messages": messages}
        assert await node.post("/v1/messages/count_tokens", **asked) == {"input_tokens": 3}
        assert await node.get("/models") == []
        await node.chat("m", status=404)
        await node.load("m")
        assert (await node.post("/models/tokenizer", model_id="m", harness="echo"))[
            "status"
        ] == "ready"
        assert await models.counter("m")(request) == 3
        await node.post("/models/tokenizer", 400, model_id="m", harness="none")
