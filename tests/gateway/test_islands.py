"""Split models share all devices of a group, or too few for groups to wait for each other."""

from __future__ import annotations

import random
from itertools import combinations

import attrs
import pytest

from cortex.errors import DeviceBusy
from cortex.fleet.model import ModelSpec
from cortex.gateway.islands import choose, gets_on
from cortex.gateway.placement import Nowhere, place
from cortex.neuron.engine.jobs import Load
from cortex.neuron.groups import Groups
from cortex.testing import FakeNeuron
from tests.gateway.running import running
from tests.gateway.test_placement import loaded, node, rules, where

FOUR = (100,) * 4


def wide(count=2, share_mb=10, **more):
    return ModelSpec(id="m", vram_mb=count * share_mb, min_devices=count, **more)


def test_what_gets_on_is_what_a_neuron_takes():
    made, outcomes = random.Random(4), set()
    for _ in range(300):
        neuron, groups = Groups(dict.fromkeys(range(6)), None, None), []
        for number in range(8):
            devices = frozenset(made.sample(range(6), made.choice((2, 2, 2, 3, 4))))
            try:
                neuron.of(devices).models[f"m{number}"] = Load(model=f"m{number}", path="")
                is_taken = True
            except DeviceBusy:
                is_taken = False
            assert gets_on(devices, groups) == is_taken, (devices, groups)
            groups += [devices] if is_taken else []
            outcomes.add(is_taken)
    assert outcomes == {True, False}


def test_what_is_chosen_gets_on_and_nothing_is_chosen_only_where_nothing_does():
    made, outcomes = random.Random(5), set()
    for _ in range(300):
        groups = []
        for _ in range(made.randrange(1, 4)):
            group = frozenset(made.sample(range(6), made.choice((2, 3, 4))))
            groups += [group] if gets_on(group, groups) else []
        order = made.sample(range(6), made.randrange(2, 7))
        count = made.randrange(2, 5)
        found = choose(order, count, groups)
        able = [
            devices
            for devices in map(frozenset, combinations(order, count))
            if gets_on(devices, groups)
        ]
        assert found in able if able else found is None
        outcomes.add(found is None)
        if any(devices in groups or not devices & frozenset().union(*groups) for devices in able):
            assert found in groups or not found & frozenset().union(*groups)
    assert outcomes == {True, False}


@pytest.mark.parametrize(
    ("there", "wanted", "devices"),
    [
        ([loaded("x", 40, 0, 1)], wide(), (2, 3)),
        ([loaded("x", 40, 0, 1), loaded("y", 90, 2)], wide(share_mb=20), (0, 1)),
        ([loaded("x", 40, 0, 1), loaded("y", 90, 3)], wide(), (0, 1)),
        ([loaded("x", 40, 1, 2), loaded("y", 80, 0, 3)], wide(), (1, 2)),
        ([loaded("x", 40, 0, 1), loaded("y", 20, 2), loaded("z", 90, 3)], wide(), (0, 1)),
        ([loaded("x", 180, 0, 1), loaded("y", 95, 2)], wide(), (0, 1)),
        ([loaded("x", 40, 0, 1, 2)], wide(), (0, 3)),  # one in common is no harm
        ([loaded("x", 40, 0, 1), loaded("y", 40, 2, 3)], wide(), (0, 1)),
    ],
)
def test_a_split_model_is_put_beside_others_or_onto_all_their_devices(there, wanted, devices):
    name, found, gone = where(place(wanted, [node("a", *there, totals_mb=FOUR)], (), rules()))
    assert (name, tuple(sorted(found)), gone) == ("a", devices, ())


BUSY = {"in_flight": {"x": 1}}


@pytest.mark.parametrize(
    ("wanted", "status", "harness", "expected"),
    [
        (wide(3), "loaded", "torch", None),
        (wide(3), "recovering", "torch", None),
        (wide(3), "loading", "", None),
        (wide(3), "failed", "torch", (0, 1, 2)),
        (wide(3), "loaded", "vllm", (0, 1, 2)),  # a server of its own
        (wide(3, harness="vllm"), "loaded", "torch", (0, 1, 2)),
        (wide(1), "loaded", "torch", (0,)),
    ],
)
def test_where_only_parts_of_a_group_are_left_it_does_not_fit(wanted, status, harness, expected):
    there = attrs.evolve(loaded("x", 0, 0, 1, status=status), harness=harness)
    at = node("a", there, totals_mb=FOUR[:3], harnesses=("torch", "vllm"), **BUSY)
    found = place(wanted, [at], (), rules())
    if expected is not None:
        assert where(found) == ("a", expected, ())
        return
    assert isinstance(found, Nowhere)
    assert (found.ever, found.waits) == (True, True)
    assert str(found).startswith("a: split models run there, x on [0, 1]: another may have the")
    assert where(place(wanted, [at, node("b", totals_mb=FOUR)], (), rules()))[0] == "b"


def test_a_load_under_way_counts_as_there():
    at = node("a", totals_mb=FOUR[:3])
    at.reserved["x"] = 10, (1, 2)
    assert isinstance(place(wide(3), [at], (), rules()), Nowhere)
    at.reserved["x"] = 10, (1,)
    assert where(place(wide(3), [at], (), rules()))[1] == (0, 1, 2)
    at.reserved["m"] = 10, (1, 2)  # its own
    assert where(place(wide(3), [at], (), rules()))[1] == (0, 1, 2)


def test_an_idle_group_that_is_in_the_way_goes_and_no_other():
    idle = node(
        "a",
        loaded("x", 20, 0, 1),
        loaded("y", 20, 2, 3),
        loaded("z", 20, 1, 2),
        totals_mb=FOUR,
        last_used={"x": 3, "y": 2, "z": 1},
    )
    _, devices, gone = where(place(wide(3), [idle], (), rules()))
    assert (sorted(devices), gone) == ([0, 1, 3], ("z", "x"))
    idle.in_flight["x"] = 1
    found = place(wide(3), [idle], (), rules())
    devices, gone = where(found)[1:]
    assert "x" not in gone
    stay = [m.devices for m in idle.models.values() if m.id not in gone]
    assert gets_on(frozenset(devices), map(frozenset, stay))


async def test_a_gateway_never_asks_a_neuron_for_what_it_would_refuse():
    sizes = dict.fromkeys(("one", "two", "three", "four", "five"), 4000)
    models = [
        ModelSpec(id=name, vram_mb=4000, min_devices=count, pinned_on=("node0",))
        for name, count in zip(sizes, (2, 2, 3, 2, 1), strict=True)
    ]
    async with (
        FakeNeuron(devices=4, sizes=sizes) as there,
        running(there, models=models) as gateway,
    ):
        for name in ("one", "two"):
            await gateway.ask(name)
        assert {there.models[name].devices for name in ("one", "two")} == {(0, 1), (2, 3)}
        told = await gateway.get("/api/v1/explain?model=three")
        assert told["how"] == "nowhere"
        [verdict] = told["nodes"]
        assert verdict["reason"].startswith("split models run there, one on [0, 1], two on [2, 3]")
        await gateway.ask("four")
        assert there.models["four"].devices in {(0, 1), (2, 3)}
        await gateway.ask("five")
