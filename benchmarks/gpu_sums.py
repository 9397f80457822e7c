"""
What it costs to add up tensors over the ranks of a group, by their size and by the way.

`gpu_tp.py` prints it, all of whose ranks run this side by side.
"""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
import torch.distributed

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from cortex.neuron.engine.group import Ranks  # noqa: E402


@attrs.frozen(kw_only=True, eq=False)
class Here:
    """
    What a rank has.

    Attributes:
        heard: What rank 0 told.
        is_tiny: Whether all is only to be seen working.
    """

    group: Ranks
    device: torch.device
    heard: queue.SimpleQueue[bytes]
    is_tiny: bool

    @property
    def leads(self) -> bool:
        """Whether it is the one that tells."""
        return self.group.rank == 0

    def say(self, text: str) -> None:
        """Print a line, once."""
        if self.leads:
            print(text, flush=True)


def reductions(here: Here, folder: str) -> None:
    """Print how long the ranks take to add up tensors, by their size and by the way."""
    here.say("\n## sums over the ranks, microseconds: bytes, what the engine does, alternatives")
    ways = {"eager": here.group.sum, **(alternatives(here, folder) if not here.is_tiny else {})}
    sizes = (8 << 10, 256 << 10) if here.is_tiny else tuple(1 << n for n in range(13, 26, 2))
    for size in sizes:
        told = [f"{size:9}"]
        for name, way in ways.items():
            try:
                told.append(f"{name} {1e6 * sum_s(here, way, size):7.1f}")
            except Exception as error:  # noqa: BLE001 - whatever it is: it is told
                told.append(f"{name}: {type(error).__name__}: {error}".splitlines()[0][:120])
            here.group.meet("")
        here.say("  ".join(told))


def sum_s(here: Here, way: Callable[[torch.Tensor], object], size: int) -> float:
    """Return how long a sum takes in a graph of some, which on a CPU there is none of."""
    kind, count = (torch.float32, 4) if here.is_tiny else (torch.bfloat16, 20)
    tensor = torch.ones(size // kind.itemsize, dtype=kind, device=here.device)
    if here.device.type == "cpu":
        return seconds(here, lambda: way(tensor), count)
    way(tensor)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(count):
            way(tensor)
    return seconds(here, graph.replay, 20) / count


def alternatives(here: Here, folder: str) -> dict[str, Callable[[torch.Tensor], object]]:
    """Return ways that go through torch's symmetric memory, if that is to be had here."""
    from torch.distributed import _symmetric_memory as symmetric

    try:
        store = torch.distributed.FileStore(f"{folder}/symmetric", here.group.ranks)  # type: ignore[attr-defined]
        torch.distributed.init_process_group(
            "nccl",
            store=store,
            rank=here.group.rank,
            world_size=here.group.ranks,
            device_id=here.device,
        )
        name = torch.distributed.group.WORLD.group_name  # type: ignore[union-attr]
        room = symmetric.empty(32 << 20, dtype=torch.bfloat16, device=here.device)
        symmetric.rendezvous(room, name)
    except Exception as error:  # noqa: BLE001 - whatever it is: it is told
        here.say(f"no symmetric memory: {type(error).__name__}: {error}".splitlines()[0])
        return {}
    operations: Any = torch.ops.symm_mem

    def one_shot(tensor: torch.Tensor) -> object:
        part = room[: tensor.numel()]
        part.copy_(tensor)
        return operations.one_shot_all_reduce(part, "sum", name)

    def two_shot(tensor: torch.Tensor) -> object:
        part = room[: tensor.numel()]
        part.copy_(tensor)
        return operations.two_shot_all_reduce_(part, "sum", name)

    return {"one shot": one_shot, "two shots": two_shot}


def seconds(here: Here, work: Callable[[], object], count: int) -> float:
    """Return how long *work* takes on the device."""
    work()
    if here.device.type == "cpu":
        clock = time.perf_counter()
        for _ in range(count):
            work()
        return (time.perf_counter() - clock) / count
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    began.record()
    for _ in range(count):
        work()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1e3 / count
