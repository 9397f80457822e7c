"""Where a model is put, why not elsewhere, and what goes for it: no sockets, no clock."""

from __future__ import annotations

import attrs
import pytest

from cortex.config.schema import NeuronEntry
from cortex.errors import PluginError
from cortex.eviction.lru import LeastRecentlyUsed
from cortex.fleet.model import ModelSpec
from cortex.fleet.node import Device, DeviceInfo, Discovery, Health, ModelHealth, NodeModel
from cortex.gateway.node import NOT_POLLED, Node
from cortex.gateway.placement import LOOK_AT, Nowhere, Placement, Rules, place, state_of

NOW = 1000.0


def loaded(name: str, used_mb: int, *devices: int, status: str = "loaded") -> NodeModel:
    return NodeModel(id=name, status=status, vram_used_mb=used_mb, devices=devices or (0,))


def node(
    name: str = "a",
    *models: NodeModel,
    totals_mb: tuple[int, ...] = (100,),
    healthy: bool = True,
    in_flight: dict[str, int] | None = None,
    busy_elsewhere: tuple[str, ...] = (),
    last_used: dict[str, float] | None = None,
    age_s: float = 500.0,
    states: dict[int, str] | None = None,
    harnesses: tuple[str, ...] = ("torch",),
) -> Node:
    used = [
        sum(m.vram_used_mb // len(m.devices) for m in models if index in m.devices)
        for index in range(len(totals_mb))
    ]
    devices = tuple(
        Device(
            index=index,
            vram_total_mb=total,
            vram_used_mb=used[index],
            vram_free_mb=total - used[index],
            state=(states or {}).get(index, "ok"),
        )
        for index, total in enumerate(totals_mb)
    )
    rows = tuple(ModelHealth(id=m, state="loaded", in_flight=1) for m in busy_elsewhere)
    infos = tuple(DeviceInfo(index=i, vram_total_mb=mb) for i, mb in enumerate(totals_mb))
    made = Node(entry=NeuronEntry(name=name, endpoint="http://h:1"), client=None)
    made.healthy, made.error = healthy, None if healthy else "connection refused"
    made.health = Health(status="ok", devices=devices, models=rows)
    made.discovery = Discovery(hostname=name, devices=infos, harnesses=harnesses)
    made.models = {model.id: model for model in models}
    made.in_flight.update(in_flight or {})
    made.last_used = last_used or {}
    made.loaded_at = {model.id: NOW - age_s for model in models}
    return made


def rules(*specs: ModelSpec, **more) -> Rules:
    known = {spec.id: spec for spec in specs}
    settings = {"min_residency_s": 20.0, "needs_mb": {}, "now": NOW, **more}
    return Rules(policy=LeastRecentlyUsed(), specs=known, **settings)


def spec(**more) -> ModelSpec:
    return ModelSpec(id="m", **{"vram_mb": 50, **more})


def where(found: Placement | Nowhere) -> tuple[str, tuple[int, ...], tuple[str, ...]]:
    assert isinstance(found, Placement), found
    return found.node.name, found.devices, found.evict


@pytest.mark.parametrize(
    ("wanted", "nodes", "expected"),
    [
        (spec(), [node("b"), node("a")], ("a", (0,), ())),
        (spec(), [node("a", loaded("x", 60)), node("b")], ("b", (0,), ())),
        (spec(), [node("a", in_flight={"x": 1}), node("b")], ("b", (0,), ())),
        (spec(pinned_on=("b",)), [node("a"), node("b", loaded("x", 60))], ("b", (0,), ("x",))),
        (spec(), [node("a", totals_mb=(40,)), node("b", loaded("x", 60))], ("b", (0,), ("x",))),
        (spec(), [node("a", healthy=False), node("b", loaded("x", 60))], ("b", (0,), ("x",))),
        (spec(), [node("a", totals_mb=(60, 90))], ("a", (1,), ())),
        (spec(), [node("a", loaded("x", 60), totals_mb=(100, 60))], ("a", (1,), ())),
        (spec(min_devices=2, vram_mb=100), [node("a", totals_mb=(60, 90, 70))], ("a", (1, 2), ())),
        (spec(vram_mb=None), [node("a", loaded("x", 99))], ("a", (0,), ())),
        (spec(min_device_vram_mb=80), [node("a", totals_mb=(90, 60))], ("a", (0,), ())),
        (spec(harness="vllm"), [node("a"), node("b", harnesses=("vllm",))], ("b", (0,), ())),
        (spec(), [node("a", totals_mb=(90, 80), states={0: "poisoned"})], ("a", (1,), ())),
    ],
    ids=[
        "the name settles it",
        "room before eviction",
        "fewest requests",
        "pinned, though it costs an eviction",
        "too small is left out",
        "unhealthy is left out",
        "the device with most room",
        "the device with room",
        "two devices with a share each",
        "of unknown size it is tried",
        "a device large enough",
        "the harness it needs",
        "a device that works",
    ],
)
def test_the_choice(wanted, nodes, expected):
    assert where(place(wanted, nodes, (), rules())) == expected


def test_what_a_load_measured_counts_more_than_the_estimate():
    nodes = [node("a", totals_mb=(60,)), node("b", totals_mb=(90,))]

    assert where(place(spec(), nodes, (), rules(needs_mb={"m": 80})))[0] == "b"


def test_memory_that_a_load_is_about_to_take_is_taken():
    nodes = [node("a"), node("b")]

    found = place(spec(), nodes, (), rules(reserved_mb=lambda at, _: 60 if at.name == "a" else 0))

    assert where(found)[0] == "b"


FULL = "its devices are full of models that are pinned, busy or new"
PINNED = ModelSpec(id="x", pinned_on=("a",))


@pytest.mark.parametrize(
    ("full", "known", "evicts"),
    [
        (node("a", loaded("x", 60)), (), True),
        (node("a", loaded("x", 60)), (PINNED,), False),
        (node("a", loaded("x", 60)), (ModelSpec(id="x", pinned_on=("b",)),), True),
        (node("a", loaded("x", 60), in_flight={"x": 1}), (), False),
        (node("a", loaded("x", 60), busy_elsewhere=("x",)), (), False),
        (node("a", loaded("x", 60), age_s=19), (), False),
        (node("a", loaded("x", 60), age_s=20), (), True),
        (node("a", loaded("x", 60, status="loading")), (), False),
        (node("a", loaded("x", 60, status="recovering")), (), False),
        (node("a", loaded("x", 40), loaded("y", 40), in_flight={"x": 1}), (), True),
        (node("a", loaded("x", 10), loaded("y", 80), in_flight={"y": 1}), (), False),
    ],
    ids=[
        "idle",
        "pinned here",
        "pinned elsewhere",
        "busy",
        "busy for others",
        "young",
        "old enough",
        "loading",
        "recovering",
        "one idle is enough",
        "one idle is not enough",
    ],
)
def test_only_what_is_idle_unpinned_and_old_enough_goes(full, known, evicts):
    found = place(spec(), [full], (), rules(*known))

    if evicts:
        assert isinstance(found, Placement)
        assert found.evict
    else:
        assert isinstance(found, Nowhere)
        assert (found.ever, found.waits, str(found)) == (True, True, f"a: {FULL}")


def test_a_policy_that_raises_is_named():
    class Broken:
        def victims(self, *_):
            raise RuntimeError("boom")

    broken = attrs.evolve(rules(), policy=Broken())
    with pytest.raises(
        PluginError, match=r"^eviction policy .*\.Broken failed: RuntimeError: boom"
    ):
        place(spec(), [node("a", loaded("x", 90))], (), broken)


def test_eviction_is_just_enough_and_oldest_first():
    there = node(
        *("a", loaded("x", 30), loaded("y", 30), loaded("z", 30)),
        last_used={"x": 3, "y": 1, "z": 2},
    )

    assert where(place(spec(vram_mb=40), [there], (), rules())) == ("a", (0,), ("y",))
    assert where(place(spec(vram_mb=41), [there], (), rules())) == ("a", (0,), ("y", "z"))


def test_nothing_goes_from_a_device_that_does_not_need_it():
    there = node("a", loaded("x", 60, 0), loaded("y", 60, 1), totals_mb=(100, 100, 100))

    wide = spec(vram_mb=100, min_devices=2)

    name, devices, evict = where(place(wide, [there], (), rules()))
    assert (name, set(devices), len(evict)) == ("a", {2, 0}, 1)


def test_between_nodes_the_policy_says_what_goes():
    nodes = [
        node("a", loaded("x", 60), last_used={"x": 9}),
        node("b", loaded("y", 60), last_used={"y": 5}, in_flight={"z": 3}),
        node("c", loaded("v", 60), loaded("w", 40), last_used={"v": 1, "w": 8}),
    ]

    assert where(place(spec(vram_mb=100), nodes, (), rules())) == ("b", (0,), ("y",))
    assert where(place(spec(vram_mb=60), nodes, (), rules())) == ("c", (0,), ("v",))


def test_of_many_nodes_some_are_looked_at_and_all_if_need_be():
    busy = [node(f"n{i}", loaded("x", 60), in_flight={"x": 1}) for i in range(4 * LOOK_AT)]

    assert where(place(spec(), [*busy, node("free")], (), rules()))[0] == "free"
    assert where(place(spec(), [*busy, node("idle", loaded("x", 60))], (), rules()))[0] == "idle"


def test_what_is_on_two_devices_frees_both():
    there = node("a", loaded("wide", 160, 0, 1), totals_mb=(100, 100))

    found = place(spec(vram_mb=100, min_devices=2), [there], (), rules())

    assert where(found) == ("a", (0, 1), ("wide",))


LARGEST = "the largest here has 100 MiB"


@pytest.mark.parametrize(
    ("wanted", "there", "without", "ever", "waits", "reason"),
    [
        (spec(vram_mb=101), node(), (), False, False, f"it needs a device of 101 MiB, {LARGEST}"),
        (
            *(spec(vram_mb=300, min_devices=2), node(totals_mb=(100, 100)), (), False, False),
            f"it needs 2 devices of 150 MiB, {LARGEST}",
        ),
        (
            *(spec(min_devices=2), node(), (), False, False),
            "it needs 2 devices of 25 MiB, there are 1 here",
        ),
        (
            *(spec(vram_mb=0, min_devices=2), node(), (), False, False),
            "it needs 2 devices, there are 1 here",
        ),
        (
            *(spec(vram_mb=0, min_device_vram_mb=90, min_devices=2), (), (), False, False),
            "it needs 2 devices of 90 MiB, the largest here has 50 MiB",
        ),
        (spec(pinned_on=("x", "y")), node(), (), False, False, "the model is pinned on x, y"),
        (spec(harness="vllm"), node(), (), False, False, "it has no harness 'vllm'"),
        (spec(), node(healthy=False), (), True, False, "connection refused"),
        (spec(), node(), ("a",), True, False, "it failed there"),
        (
            *(spec(), node(states={0: "recovering"}), (), True, True),
            "too few of its devices work: 0 is recovering",
        ),
    ],
)
def test_why_not(wanted, there, without, ever, waits, reason):
    there = there or node(totals_mb=(50, 50))
    found = place(wanted, [there], without, rules())

    assert isinstance(found, Nowhere)
    assert (found.ever, found.waits, str(found)) == (ever, waits, f"a: {reason}")


def test_where_room_is_made_nothing_else_is_placed():
    found = place(spec(), [node("a")], (), rules(making_room={"a"}))

    assert isinstance(found, Nowhere)
    assert (found.ever, found.waits) == (True, True)
    assert str(found) == "a: it makes room for another model"


def test_without_a_node_there_is_no_reason_but_that():
    assert str(place(spec(), [], (), rules())) == "none is configured"


def test_a_node_that_is_asked_for_the_first_time_is_waited_for():
    new = node("a", healthy=False)
    new.health, new.discovery, new.error = None, None, NOT_POLLED

    found = place(spec(), [new], (), rules())

    assert (found.ever, found.waits, str(found)) == (True, True, "a: not polled yet")


def test_a_node_that_never_answered_may_yet_be_feasible():
    silent = node("a", healthy=False)
    silent.health = silent.discovery = None

    found = place(spec(vram_mb=10**9), [silent], (), rules())

    assert isinstance(found, Nowhere)
    assert found.ever


@pytest.mark.parametrize(
    ("status", "healthy", "state"),
    [
        ("loaded", True, "loaded"),
        ("loading", True, "coming"),
        ("recovering", True, "coming"),
        ("poisoned", True, "coming"),
        ("failed", True, "absent"),
        ("unloading", True, "absent"),
        ("a new word", True, "absent"),
        ("loaded", False, "absent"),
    ],
)
def test_the_state_of_a_model(status, healthy, state):
    assert state_of("m", [node("a", loaded("m", 1, status=status), healthy=healthy)]) == state
    assert state_of("other", [node("a", loaded("m", 1, status=status))]) == "absent"
