"""A load may take as long as its node gets on with it; in virtual time."""

from __future__ import annotations

import asyncio

import attrs
import pytest

from cortex.errors import CortexError
from cortex.fleet.model import ModelSpec
from cortex.gateway import patience, poller
from cortex.gateway.patience import LONGEST_S, QUIET_S, QUIET_S_PER_GIB, quiet_s
from tests.gateway.test_planner import fleet, now, virtually

BIG = ModelSpec(id="big", vram_mb=100)
STEP_S = 200.0


@pytest.fixture(autouse=True)
def polled_often(monkeypatch) -> None:
    """Have polls and looks as rare as the bounds here bear: hours of them take their time."""
    monkeypatch.setattr(poller, "POLL_WHILE_LOADING_S", 2.0)
    monkeypatch.setattr(patience, "LOOK_S", 4.0)


async def outcome(minutes_of_progress: float, rest_s: float) -> tuple[str, float]:
    """
    Load by hand: a node tells of progress for a while, and then of none for *rest_s*.

    Returns:
        What went wrong, if anything, and how long it took.
    """

    async def load() -> None:
        neuron = world.neurons["node0"]
        until = now() + 60 * minutes_of_progress
        while now() < until:
            await asyncio.sleep(STEP_S)
            row = attrs.evolve(neuron.models["big"], stage="reading", progress=now() / 1e6)
            neuron.models["big"] = row
        await asyncio.sleep(rest_s)

    async with fleet([BIG], (100,), load=load) as world:
        began, error = now(), ""
        try:
            await world.gateway.loads.ensure(BIG)
        except CortexError as raised:
            error = str(raised)
        return error, now() - began


def test_a_load_that_gets_on_takes_as_long_as_it_takes():
    async def main() -> None:
        error, took_s = await outcome(minutes_of_progress=120, rest_s=QUIET_S - 20)
        assert error == ""
        assert took_s >= 7200 + QUIET_S - 20

    virtually(main)


@pytest.mark.parametrize("minutes", [0, 30])
def test_a_load_that_does_not_get_on_is_given_up(minutes):
    async def main() -> None:
        error, took_s = await outcome(minutes, rest_s=1e5)
        assert "node0 has told of no progress with big for 302 s" in error
        assert 0 <= took_s - 60 * minutes - quiet_s(100) < STEP_S + 5

    virtually(main)


def test_a_load_that_never_ends_is_given_up():
    async def main() -> None:
        error, took_s = await outcome(minutes_of_progress=60 * 24, rest_s=0)
        assert f"or not loaded it in {LONGEST_S:.0f} s" in error
        assert 0 <= took_s - LONGEST_S < 5

    virtually(main)


def test_a_model_that_is_known_to_be_large_may_be_silent_longer():
    assert quiet_s(0) == QUIET_S
    assert quiet_s(10 << 10) == QUIET_S + 10 * QUIET_S_PER_GIB
