"""What the policy lets go, as tables, and that cortex finds it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cortex_eviction_cost
from cortex.config.schema import PluginSettings
from cortex.fleet.model import LoadedModel, ModelSpec
from cortex.plugins import Plugins
from cortex_eviction_cost import GIB, Cost

NEW = ModelSpec(id="new")


def model(
    name: str, gib: float, heat: float, load_s: float = 10.0, last_used: float = 0.0
) -> LoadedModel:
    return LoadedModel(
        id=name, used_bytes=int(gib * GIB), last_used=last_used, heat=heat, load_s=load_s
    )


@pytest.mark.parametrize(
    ("loaded", "need_gib", "gone"),
    [
        ([model("hot", 1, 9), model("cold", 1, 1)], 1, ["cold"]),
        ([model("slow", 1, 1, load_s=60), model("quick", 1, 1, load_s=5)], 1, ["quick"]),
        ([model("large", 4, 1), model("small", 1, 1)], 1, ["large"]),
        ([model("then", 1, 0, last_used=1), model("now", 1, 0, last_used=2)], 1, ["then"]),
        ([model("measured", 1, 1, load_s=7), model("unknown", 1, 1, load_s=0)], 1, ["unknown"]),
        ([model("a", 1, 1), model("b", 1, 2), model("c", 1, 3)], 2, ["a", "b"]),
        ([model("crumb", 0.1, 0.001), model("loaf", 2, 1)], 2, ["loaf"]),
        ([model("a", 1, 1)], 2, []),
        ([], 1, []),
    ],
    ids=[
        "what few ask",
        "what loads quickly",
        "what takes much",
        "of equals what was used longest ago",
        "what was not measured is estimated",
        "more than one",
        "no crumb for nothing",
        "all is not enough",
        "there is nothing",
    ],
)
def test_what_goes(loaded, need_gib, gone):
    victims = Cost().victims(int(need_gib * GIB), NEW, loaded, 100.0)

    assert [victim.id for victim in victims] == gone


models = st.builds(
    model, st.uuids().map(str), st.floats(0, 50), st.floats(0, 100), st.floats(0, 300)
)


@given(st.lists(models, max_size=8), st.integers(1, 200 * GIB))
def test_victims_are_enough_and_none_is_in_vain(loaded, need_bytes):
    victims = Cost().victims(need_bytes, NEW, loaded, 100.0)

    freed = sum(victim.used_bytes for victim in victims)
    if victims:
        assert freed >= need_bytes
        assert all(freed - victim.used_bytes < need_bytes for victim in victims)
    else:
        assert sum(m.used_bytes for m in loaded) < need_bytes


def test_it_is_an_eviction_policy():
    plugins = Plugins(PluginSettings(only=frozenset()))
    plugins.manager.register(cortex_eviction_cost, "eviction-cost")

    offer = plugins.choose("eviction policy", "cost", "cortex.toml: eviction.strategy")

    assert isinstance(offer.build(), Cost)


def test_an_installed_one_is_found():
    found = Plugins(PluginSettings(only=frozenset({"eviction-cost"})))
    if "eviction-cost" not in found.loaded():
        pytest.skip("it is not installed here")
    assert found.distribution("eviction-cost") == "cortex-eviction-cost"
    assert "cost" in {offer.name for offer in found.offers("eviction policy")}
