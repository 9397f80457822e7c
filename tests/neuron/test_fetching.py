"""Fetches that are looked at before the weights come."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import attrs
import pytest

from cortex.errors import UnsupportedArchitecture
from cortex.fleet.model import Checkpoint, ModelSpec, Progress
from cortex.neuron.fetching import fetch
from cortex.testing import until

SPEC = ModelSpec(id="m")
TEXT = Checkpoint(path=Path("text"), format="safetensors", size_bytes=0)
WHOLE = attrs.evolve(TEXT, size_bytes=7)


@attrs.define
class Source:
    """Brings the text side first."""

    went_on: bool = False
    ended: threading.Event = attrs.field(factory=threading.Event)

    def fetch(self, _spec, report):
        try:
            report(Progress(stage="fetching", done=1, total=8, text=TEXT))
            self.went_on = True
        finally:
            self.ended.set()
        return WHOLE


async def test_the_weights_wait_for_the_check_of_the_text_side():
    source, looked = Source(), []

    async def check(text):
        looked.append((text, source.went_on))

    assert await fetch(lambda _: source, SPEC, lambda _: None, check=check) == WHOLE
    assert looked == [(TEXT, False)]


async def test_what_the_check_says_ends_the_fetch():
    source = Source()

    async def check(_):
        raise UnsupportedArchitecture("no")

    with pytest.raises(UnsupportedArchitecture, match="no"):
        await fetch(lambda _: source, SPEC, lambda _: None, check=check)
    assert not source.went_on


async def test_without_a_check_nothing_is_looked_at():
    assert await fetch(lambda _: Source(), SPEC, lambda _: None) == WHOLE


async def test_a_fetch_nobody_waits_for_ends_its_check_and_its_thread():
    source, asked = Source(), asyncio.Event()

    async def check(_):
        asked.set()
        await asyncio.Event().wait()

    fetching = asyncio.create_task(fetch(lambda _: source, SPEC, lambda _: None, check=check))
    await asked.wait()
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    await until(source.ended.is_set)
    assert not source.went_on
