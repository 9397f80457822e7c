"""
Sums in memory that all ranks reach, and when they go another way.

The memory, which takes GPUs, is faked: ranks are threads that wait for each other, or processes
that have files in common.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from cortex.errors import DeviceUnavailable
from cortex.fleet.model import Checkpoint
from cortex.neuron.engine import group as group_module
from cortex.neuron.engine import sums
from cortex.neuron.engine import worker as worker_module
from cortex.neuron.engine.group import Ranks
from cortex.neuron.engine.jobs import Load
from cortex.neuron.engine.kernels.fused import allreduce
from cortex.neuron.engine.place import Place
from tests.neuron.engine.conftest import load, running_harness
from tests.neuron.engine.ranks import Together

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
WAIT_S = 20


class Node:
    """
    What torch has for symmetric memory, of all ranks of a host together.

    Attributes:
        broken: Called with the name of what is done and the rank that does it.
    """

    def __init__(self, ranks):
        self.barrier = threading.Barrier(ranks)
        self.rooms = [torch.empty(0)] * ranks
        self.parts = [torch.empty(0)] * ranks
        self.registered = set()
        self.broken = lambda _what, _rank: None
        self._me = threading.local()

    def __getattr__(self, name):  # this is the module, too
        assert name in {"_SymmetricMemory", "ProcessGroup"}
        return {"_SymmetricMemory": self, "ProcessGroup": Registered}[name]

    def empty_strided_p2p(self, size, stride, kind, device):
        assert (stride, device) == ((1,), CPU)
        return torch.empty(size, dtype=kind)

    def _register_process_group(self, name, group):
        assert group.names == [name]
        self._me.rank = group.rank
        self.registered.add(group.rank)

    def _unregister_process_group(self, _):
        self.registered.discard(getattr(self._me, "rank", None))

    def rendezvous(self, room, _):
        self.broken("rendezvous", self._me.rank)
        self.rooms[self._me.rank] = room
        self.barrier.wait(WAIT_S)
        return Mock(buffer_ptrs=[room.data_ptr() for room in self.rooms])

    def allreduce(self, part, out, rooms, turns, rank, factor=None):
        """Do what the kernel does; that is run by processes, since its interpreter has one grid."""
        self.broken("sum", rank)
        assert rooms.tolist() == [room.data_ptr() for room in self.rooms]
        assert not turns.any()
        self.parts[rank] = part.clone()
        self.barrier.wait(WAIT_S)
        total = sum(part.float() for part in self.parts)
        out.copy_(total if factor is None else out.float() + factor * total)
        self.barrier.wait(WAIT_S)


class Registered:
    """A process group."""

    class BackendType:
        NCCL = "nccl"

    def __init__(self, _store, rank, _ranks):
        self.rank = rank
        self.names = []

    def _register_backend(self, device, kind, backend):
        assert (device, kind, backend) == (CPU, "nccl", "theirs")

    def _set_group_name(self, name):
        self.names.append(name)


@pytest.fixture(name="node")
def _node(monkeypatch):
    node = Node(2)
    monkeypatch.setattr(sums, "_c10d", lambda: node)
    monkeypatch.setattr(sums, "DEVICES", ("cpu",))
    monkeypatch.setattr(allreduce, "allreduce", node.allreduce)
    return node


def ranked(work, ranks=2):
    """Return what *work* makes of each rank, and of its sums, if any."""

    def one(rank):
        place = Place(rank=rank.rank, ranks=ranks, folder="/here")
        return work(rank, sums.tried(None, place, CPU, "theirs", rank.sum, rank.meet))

    return Together(ranks).run(one)


@pytest.mark.parametrize(("device", "ranks"), [("cpu", 2), ("cuda", 9), ("cuda", 1)])
def test_no_room_is_looked_for_where_there_can_be_none(device, ranks, monkeypatch):
    monkeypatch.setattr(sums, "_c10d", lambda: pytest.fail("it was"))
    place = Place(rank=0, ranks=ranks, folder="/here")
    assert sums.tried(None, place, torch.device(device), None, None, None) is None


@pytest.mark.parametrize(
    ("size", "kind", "is_taken"),
    [
        (2, torch.bfloat16, True),
        (3, torch.bfloat16, False),  # half a word is over
        (1, torch.float32, True),
        (1, torch.float64, False),
        (0, torch.float32, False),
        (1 << 20, torch.float32, True),
        ((1 << 20) + 1, torch.float32, False),
    ],
)
def test_what_is_small_and_of_whole_words_is_taken(node, size, kind, is_taken):
    assert ranked(lambda _, made: made.takes(torch.zeros(size, dtype=kind))) == [is_taken] * 2


def test_sums_are_added_or_put_where_the_part_was(node):
    def work(rank, made):
        part, there = torch.full((4, 8), 1.0 + rank.rank), torch.ones(4, 8)
        made.add(part, there, 0.5)
        return made.sum(part).data_ptr() == part.data_ptr(), part.tolist(), there.tolist()

    assert ranked(work) == [(True, [[3.0] * 8] * 4, [[2.5] * 8] * 4)] * 2


@pytest.mark.timeout(120)
def test_the_kernel_adds_up_between_processes(tmp_path):
    # the real one, interpreted: each rank writes to files that all have mapped
    ranks = 2
    told = {"cwd": Path(__file__).parents[3], "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", "tests.neuron.engine.summing", str(tmp_path), str(ranks)]
    running = [subprocess.Popen([*command, str(rank)], **told) for rank in range(ranks)]
    try:
        said = [process.communicate(timeout=100)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [0] * ranks
    assert len(set(said)) == 1  # bit for bit, on all ranks


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("what", ["rendezvous", "sum"])
def test_what_fails_on_one_rank_leaves_sums_to_nccl_on_all_and_is_told_once(
    node, caplog, what, rank
):
    def broken(now, at):
        if now == what:
            if at == rank:
                node.barrier.abort()  # as the other's time runs out
            raise RuntimeError(f"no {now}")

    node.broken = broken
    assert ranked(lambda _, room: room) == [None, None]
    [line] = caplog.messages
    assert line.startswith("sums over 2 GPUs all go by NCCL: ")
    assert f"rank {rank}: RuntimeError: no {what}" in line
    assert not node.registered


def test_a_wrong_sum_on_one_rank_leaves_all_to_nccl(node, caplog, monkeypatch):
    ran = []

    def wrong(part, out, rooms, turns, rank, factor=None):
        node.allreduce(part, out, rooms, turns, rank, factor)
        if rank == 1:
            ran.append(part.nbytes)
            if len(ran) == sums.TURNS + 2:
                out[-1] += 1

    monkeypatch.setattr(allreduce, "allreduce", wrong)
    assert ranked(lambda _, made: made) == [None, None]
    [line] = caplog.messages
    assert len(ran) == sums.TURNS * len(sums.TRIED) * len(sums.KINDS)
    wrong = f"wrong were 1 of {ran[sums.TURNS]} bytes of torch.bfloat16"
    assert line.endswith(f"by NCCL: rank 1: ValueError: of 5 sums each, {wrong}")


def test_a_device_that_is_beyond_use_is_no_reason_to_go_on_by_nccl(node):
    def broken(_, rank):
        node.barrier.abort()
        if rank == 0:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    node.broken = broken
    with pytest.raises(RuntimeError, match="CUDA error: an illegal"):
        ranked(lambda _, room: room)


def test_a_room_is_not_made_where_the_name_of_its_socket_would_be_too_long(
    node, caplog, monkeypatch
):
    monkeypatch.setattr(sums.tempfile, "gettempdir", lambda: "/" + 90 * "x")
    assert ranked(lambda _, room: room) == [None, None]
    assert "too long a name" in caplog.text


def test_who_leaves_is_not_registered_any_more(node):
    def work(rank, room):
        rank.meet("")
        assert node.registered == {0, 1}
        rank.meet("")
        room.leave()

    ranked(work)
    assert not node.registered


def test_processes_that_count_from_different_numbers_find_each_other():
    # one was in three groups before, as torch counts: rooms, and what they have in common
    store = torch.distributed.HashStore()
    numbered = [sums.Numbered(store) for _ in range(2)]  # kept: torch does not
    ours = [torch.distributed.PrefixStore("CUDASymmetricMemory", by) for by in numbered]
    for rank, first in enumerate((0, 6)):
        for step in range(2):
            ours[rank].set(f"{first + step}/{rank}", bytes([10 * step + rank, 0, 255]))
    for rank, first in enumerate((0, 6)):
        for step in range(2):
            found = ours[rank].multi_get([f"{first + step}/{other}" for other in range(2)])
            assert found == [bytes([10 * step + other, 0, 255]) for other in range(2)]
    assert ours[0].add("2/count", 1) == 1
    assert ours[1].add("8/count", 1) == 2


def test_nobody_waits_longer_for_a_rank_that_does_not_come_than_for_a_meeting(monkeypatch):
    monkeypatch.setattr(sums, "MEETING_S", 0.05)
    store = torch.distributed.HashStore()
    store.set_timeout(timedelta(seconds=3600))
    with pytest.raises(RuntimeError, match=r"(?i)time"):
        sums.Numbered(store).get("x/0/1")


@pytest.fixture
def alone(tmp_path):
    """Return what makes a group of one rank, over gloo."""
    made = []

    def make(**more):
        place = Place(rank=0, ranks=1, folder=str(tmp_path / str(len(made))))
        (tmp_path / str(len(made))).mkdir()
        made.append(Ranks(place, torch.device("cpu"), hear=pytest.fail, lost=pytest.fail, **more))
        return made[-1]

    yield make
    for group in made:
        group.close()


def test_a_group_of_cpus_adds_up_by_its_collectives(alone, monkeypatch):
    monkeypatch.setattr(sums, "_c10d", lambda: pytest.fail("it looked for GPUs"))
    group = alone()
    assert group.sums is None
    assert group.sum(torch.ones(4)).tolist() == [1.0] * 4
    group.add(torch.ones(4), there := torch.ones(4), 0.5)
    assert there.tolist() == [1.5] * 4


def test_a_group_that_is_told_so_shares_no_memory(alone, monkeypatch):
    monkeypatch.setattr(group_module.sums, "tried", lambda *_: pytest.fail("it tried"))
    assert alone(shares=False).sums is None


class Room:
    """A room of a group."""

    left = False

    def takes(self, part):
        return len(part) == 4

    def sum(self, part):
        return part + 10

    def add(self, part, to, factor):
        to += factor * self.sum(part)

    def leave(self):
        self.left = True


def test_a_group_adds_up_in_its_room_what_that_takes_and_leaves_it_at_the_end(alone, monkeypatch):
    room = Room()
    monkeypatch.setattr(group_module.sums, "tried", lambda *_: room)
    group = alone()
    assert group.sum(torch.zeros(4)).tolist() == [10.0] * 4
    assert group.sum(torch.zeros(5)).tolist() == [0.0] * 5
    for length, there in ((4, [21.0] * 4), (5, [1.0] * 5)):
        group.add(torch.zeros(length), out := torch.ones(length), 2.0)
        assert out.tolist() == there
    group.close()
    assert room.left


@pytest.mark.parametrize(("said", "shares"), [({}, True), ({"sums": "nccl"}, False)], ids=str)
def test_a_worker_makes_a_group_as_its_load_says(monkeypatch, said, shares):
    made = []
    monkeypatch.setattr(worker_module, "Ranks", lambda *_, **told: made.append(told) or Mock())
    place = Place(rank=0, ranks=2, folder="/here")
    worker_module.Worker(None, CUDA)._joined(Load(model="m", path="", place=place, **said))
    assert [told["shares"] for told in made] == [shares]


async def test_a_load_says_how_the_harness_is_to_add_up(monkeypatch, tmp_path):
    told = []

    async def loaded(_, job, __):
        told.append(job.sums)
        raise DeviceUnavailable("there is none")

    monkeypatch.setattr("cortex.neuron.workers.DeviceWorker.load", loaded)
    checkpoint = Checkpoint(path=tmp_path, format="safetensors", size_bytes=0)
    for options in ({}, {"sums": "nccl"}):
        async with running_harness(**options) as (harness, _):
            with pytest.raises(DeviceUnavailable):
                await load(harness, checkpoint)
    assert told == ["auto", "nccl"]
