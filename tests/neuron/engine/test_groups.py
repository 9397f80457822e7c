"""Which devices may be split over together, and what becomes of loads where workers end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cortex.errors import (
    CortexError,
    DeviceBusy,
    DeviceUnavailable,
    InsufficientVram,
    TensorParallelNotSupported,
)
from cortex.neuron import groups as groups_module
from cortex.neuron.engine.jobs import Load, Loaded, TextFiles
from cortex.neuron.groups import Groups, WorkerGroup
from cortex.testing import until


def groups_of(devices, *used):
    """Return the groups of some workers, those of *used* devices with a model each."""
    groups = Groups(dict.fromkeys(range(devices)), None, None)
    for number, key in enumerate(used):
        groups.of(key).models[f"m{number}"] = Load(model=f"m{number}", path="")
    return groups


@pytest.mark.parametrize(
    ("used", "asked"),
    [
        ([], (0, 1)),
        ([(0, 1)], (1, 0)),
        ([(0, 1)], (2, 3)),
        ([(0, 1)], (1, 2)),
        ([(0, 1), (2, 3)], (1, 2)),
    ],
    ids=str,
)
def test_groups_that_never_wait_for_each_other_in_a_ring_are_had(used, asked):
    groups = groups_of(4, *used)
    assert groups.of(asked) is groups.of(tuple(reversed(asked)))


@pytest.mark.parametrize(
    ("used", "asked"),
    [
        ([(0, 1)], (0, 1, 2)),
        ([(0, 1), (1, 2)], (0, 2)),
        ([(0, 1), (2, 3), (1, 2)], (0, 3)),
        ([(0, 1), (2, 3)], (0, 1, 2, 3)),
    ],
    ids=str,
)
def test_groups_that_could_wait_for_each_other_are_refused(used, asked):
    with pytest.raises(DeviceBusy, match="already run m0") as caught:
        groups_of(4, *used).of(asked)
    assert caught.value.status == 409


def test_devices_of_a_model_that_was_unloaded_are_free_again():
    groups = groups_of(4, (0, 1))
    groups.of((0, 1)).models.clear()
    assert groups.of((0, 1, 2)).workers == (None, None, None)


def test_a_device_without_a_worker_is_named():
    with pytest.raises(TensorParallelNotSupported, match="no worker of device 4"):
        groups_of(4).of((3, 4))


class Worker:
    """A worker without a process: what comes of a load is taken from *outcomes*, by model."""

    def __init__(self, **outcomes):
        self.outcomes = outcomes
        self.shares = {}
        self.places = []
        self.ended = asyncio.Event()

    async def started(self):
        pass

    async def load(self, job, _):
        self.places.append(job.place)
        outcome = self.outcomes.get(job.model, [])
        match outcome.pop(0) if outcome else None:
            case CortexError() as error:
                raise error
            case "stuck":
                await self.ended.wait()
                raise DeviceUnavailable("it was ended")
        text = TextFiles(tokenizer="", chat_template=None, special_tokens={}, sampling={})
        return Loaded(model=job.model, used_bytes=7, context=9, text=text)

    async def unload(self, model):
        pass

    def end(self, _):
        self.ended.set()


class Heard:
    """A watcher that keeps what it is told."""

    def __init__(self):
        self.told = []

    def model_lost(self, model):
        self.told.append(("lost", model))

    def model_back(self, model, loaded):
        self.told.append(("back", model, loaded.used_bytes))

    def model_failed(self, model, _):
        self.told.append(("failed", model))


def group_of(*workers):
    heard, spawned = Heard(), []
    return (
        WorkerGroup(workers, heard, lambda work, _: spawned.append(asyncio.create_task(work))),
        heard,
        spawned,
    )


async def load(group, model):
    return await group.load(Load(model=model, path=""), lambda *_: None)


async def test_models_share_a_meeting_place_until_the_last_of_them_is_gone():
    worker = Worker()
    group, _, _ = group_of(Worker(), worker)
    assert (await load(group, "a")).used_bytes == 14
    await load(group, "b")
    for model in "ab":
        await group.unload(model)
    await load(group, "c")
    first, second, third = (place.folder for place in worker.places)
    assert first == second != third
    assert {(place.rank, place.ranks) for place in worker.places} == {(1, 2)}
    await group.unload("c")


async def test_a_rank_that_does_not_come_to_know_of_anothers_failure_is_ended(monkeypatch):
    monkeypatch.setattr(groups_module, "GRACE_S", 0.01)
    stuck = Worker(a=["stuck"])
    group, _, _ = group_of(stuck, Worker(a=[InsufficientVram("no room")]))
    with pytest.raises(InsufficientVram, match="no room"):
        await load(group, "a")
    assert stuck.ended.is_set()
    assert not group.in_use
    assert not stuck.shares


async def test_a_load_that_is_cancelled_keeps_its_devices_and_meeting_place_until_its_unload():
    stuck = Worker(a=["stuck"])
    group, _, _ = group_of(stuck, Worker())
    loading = asyncio.create_task(load(group, "a"))
    await until(lambda: stuck.places)
    loading.cancel()
    await asyncio.wait({loading})
    assert loading.cancelled()
    folder = Path(stuck.places[0].folder)
    assert (group.in_use, folder.is_dir(), {*stuck.shares}) == ({"a"}, True, {"a"})

    await group.unload("a")
    assert (group.in_use, folder.exists(), stuck.shares) == (set(), False, {})


async def test_a_model_whose_reload_ends_a_worker_is_given_up_and_the_others_come_back():
    worker = Worker(b=[None, DeviceUnavailable("it died")])
    group, heard, spawned = group_of(Worker(), worker)
    await load(group, "a")
    await load(group, "b")
    worker.shares["a"]()
    worker.shares["b"]()  # the second rank that ends tells nothing new
    assert group.in_use == {"a", "b"}
    await asyncio.gather(*spawned)

    assert heard.told == [
        *[("lost", "a"), ("lost", "b"), ("back", "a", 14)],
        *[("failed", "b"), ("lost", "a"), ("back", "a", 14)],
    ]
    assert group.in_use == {"a"}
    assert {*worker.shares} == {"a"}
    await group.unload("a")
