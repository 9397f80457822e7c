"""Which node a strategy chooses, as tables."""

from __future__ import annotations

import pytest

from cortex.chat.request import RequestHead
from cortex.fleet.model import Candidate
from cortex.routing.least_loaded import LeastLoaded
from cortex.routing.round_robin import RoundRobin


def head(model: str = "m") -> RequestHead:
    return RequestHead(id="r", model=model)


def nodes(**loads: tuple[int, int]) -> list[Candidate]:
    return [Candidate(node=name, in_flight=i, queued=q) for name, (i, q) in loads.items()]


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        (nodes(a=(0, 0)), "a"),
        (nodes(a=(2, 0), b=(1, 0)), "b"),
        (nodes(a=(1, 1), b=(1, 0)), "b"),
        (nodes(a=(0, 3), b=(2, 0)), "b"),
        (nodes(b=(1, 0), a=(1, 0)), "a"),
        (nodes(b=(0, 1), a=(1, 0)), "a"),
        (nodes(c=(5, 5), a=(9, 0), b=(0, 9)), "a"),
    ],
)
def test_least_loaded_takes_the_fewest_requests_and_then_the_name(candidates, chosen):
    assert LeastLoaded().choose(head(), candidates).node == chosen


def test_round_robin_takes_each_in_turn_for_each_model():
    strategy, three = RoundRobin(), nodes(b=(9, 9), c=(0, 0), a=(1, 0))

    assert "".join(strategy.choose(head("m"), three).node for _ in range(7)) == "abcabca"
    assert "".join(strategy.choose(head("n"), three).node for _ in range(3)) == "abc"


def test_round_robin_goes_on_when_nodes_come_and_go():
    strategy = RoundRobin()
    turns = [nodes(a=(0, 0), b=(0, 0)), nodes(c=(0, 0)), nodes(a=(0, 0), b=(0, 0), d=(0, 0))]

    assert "".join(strategy.choose(head(), turn).node for turn in turns) == "acd"
