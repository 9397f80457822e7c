"""What a policy lets go, as tables: enough, not more, and nothing where all is not enough."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.eviction.lru import LeastRecentlyUsed
from cortex.eviction.priority import ByPriority
from cortex.fleet.model import LoadedModel, ModelSpec


def model(name: str, used_bytes: int, last_used: float, priority: int = 0) -> LoadedModel:
    return LoadedModel(id=name, used_bytes=used_bytes, last_used=last_used, priority=priority)


THREE = [model("new", 10, 30), model("old", 10, 10), model("mid", 10, 20)]
UNEVEN = [model("small", 1, 10), model("big", 10, 20), model("tiny", 1, 15)]


@pytest.mark.parametrize(
    ("loaded", "need_bytes", "gone"),
    [
        (THREE, 1, ["old"]),
        (THREE, 10, ["old"]),
        (THREE, 11, ["old", "mid"]),
        (THREE, 30, ["old", "mid", "new"]),
        (THREE, 31, []),
        ([], 1, []),
        (UNEVEN, 10, ["big"]),  # the small ones would go for nothing
        (UNEVEN, 11, ["small", "big"]),
        (UNEVEN, 2, ["small", "tiny"]),
        ([model("unknown", 0, 1), model("known", 5, 2)], 5, ["known"]),
    ],
)
def test_lru_lets_the_longest_unused_go_just_enough(loaded, need_bytes, gone):
    victims = LeastRecentlyUsed().victims(need_bytes, ModelSpec(id="x"), loaded, 99.0)

    assert [victim.id for victim in victims] == gone


RANKED = [model("low", 10, 30, 1), model("same", 10, 20, 5), model("high", 10, 10, 9)]


@pytest.mark.parametrize(
    ("priority", "need_bytes", "gone"),
    [
        (0, 1, []),
        (1, 1, ["low"]),
        (5, 1, ["same"]),
        (5, 20, ["same", "low"]),
        (5, 21, []),
        (9, 1, ["high"]),
        (10, 30, ["high", "same", "low"]),
    ],
)
def test_priority_displaces_equal_and_lower_rank_only(priority, need_bytes, gone):
    incoming = ModelSpec(id="x", priority=priority)
    victims = ByPriority().victims(need_bytes, incoming, RANKED, 99.0)

    assert [victim.id for victim in victims] == gone


models = st.builds(
    model, st.uuids().map(str), st.integers(0, 50), st.floats(0, 100), st.integers(0, 3)
)


@given(st.lists(models, max_size=8), st.integers(1, 200))
def test_victims_are_enough_and_none_is_in_vain(loaded, need_bytes):
    for policy in (LeastRecentlyUsed(), ByPriority()):
        incoming = ModelSpec(id="x", priority=2)
        victims = policy.victims(need_bytes, incoming, loaded, 100.0)
        freed = sum(victim.used_bytes for victim in victims)
        may_go = [m for m in loaded if m.priority <= 2 or isinstance(policy, LeastRecentlyUsed)]
        if victims:
            assert freed >= need_bytes
            assert all(freed - victim.used_bytes < need_bytes for victim in victims)
            assert all(victim in may_go for victim in victims)
        else:
            assert sum(m.used_bytes for m in may_go) < need_bytes
