"""Where conversations go: back to their node, unless that is a bad idea."""

from __future__ import annotations

from copy import deepcopy

import pytest

from cortex.chat.request import RequestHead
from cortex.fleet.model import Candidate
from cortex.routing import prefix_affinity
from cortex.routing.prefix_affinity import FULL_PCT, MARGIN, PrefixAffinity


def head(affinity: str = "talk", model: str = "m", principal: str = "zed") -> RequestHead:
    return RequestHead(id="r", model=model, principal=principal, affinity=affinity)


def node(name: str, in_flight: int = 0, queued: int = 0, kv: float | None = None) -> Candidate:
    return Candidate(node=name, in_flight=in_flight, queued=queued, kv_used_pct=kv)


def at_home_on_b() -> PrefixAffinity:
    strategy = PrefixAffinity()
    assert strategy.choose(head(), [node("a", 1), node("b")]).node == "b"
    return strategy


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ([node("a"), node("b", MARGIN)], "b"),
        ([node("a"), node("b", 1, MARGIN - 1)], "b"),
        ([node("a"), node("b", MARGIN + 1)], "a"),
        ([node("a", 3), node("b", MARGIN + 3)], "b"),
        ([node("a"), node("b", kv=FULL_PCT)], "b"),
        ([node("a"), node("b", kv=FULL_PCT + 1)], "a"),
        ([node("a", kv=99), node("b", kv=95)], "b"),
        ([node("c", 2), node("a", 1)], "a"),
        ([node("c")], "c"),
    ],
    ids=[
        "a little more loaded",
        "with a queue",
        "much more loaded",
        "the others are loaded too",
        "nearly full",
        "full",
        "all are full",
        "its node is gone",
        "there is one",
    ],
)
def test_a_conversation_goes_back_to_its_node_unless_that_is_loaded_or_full(candidates, chosen):
    assert at_home_on_b().choose(head(), candidates).node == chosen


def test_it_stays_where_it_went_last():
    strategy = at_home_on_b()
    strategy.choose(head(), [node("a"), node("b", MARGIN + 1)])

    assert strategy.choose(head(), [node("a", 1), node("b")]).node == "a"


@pytest.mark.parametrize("other", [head("other"), head(model="n"), head(principal="amy"), head("")])
def test_other_conversations_go_where_least_is_to_do(other):
    assert at_home_on_b().choose(other, [node("a"), node("b", 1)]).node == "a"


def test_what_is_remembered_is_bounded_and_the_oldest_goes(monkeypatch):
    monkeypatch.setattr(prefix_affinity, "MAX_HOMES", 2)
    strategy, two = at_home_on_b(), [node("a", 1), node("b")]
    strategy.choose(head("second"), two)
    strategy.choose(head(), two)
    strategy.choose(head("third"), two)

    later = [node("a"), node("b", 1)]
    assert strategy.choose(head(), later).node == "b"
    assert strategy.choose(head("second"), later).node == "a"


def test_a_copy_that_is_asked_changes_nothing():
    strategy = at_home_on_b()
    deepcopy(strategy).choose(head(), [node("a"), node("b", MARGIN + 1)])

    assert strategy.choose(head(), [node("a"), node("b", 1)]).node == "b"
