"""
Sums over the ranks of a group: whether they hold under stress, and what they cost.

`gpu_tp.py` prints it, all of whose ranks run this side by side.
"""

from __future__ import annotations

import hashlib
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from gpu_clock import seconds  # noqa: E402
from gpu_ranks import Here  # noqa: E402

WIDTHS = (8, 4096, 32768, 65536, 65544, 262144, 1048576)
REPLAYS = 1000
LARGEST = 1 << 25  # bytes
HOST_EVERY = 100  # replays, the host is late, too
PAIR = 2  # of whom all add up in one order
SKEW_CYCLES = 200_000  # of a rank, at most, before a step; some 0.1 ms


def endures(here: Here, others: Here) -> bool:
    """
    Tell whether sums in a graph are the same on all ranks, however far apart those are.

    A graph takes chains of sums a step further, so that a single wrong bit shows in all that
    follows; every other sum is added to what is there.
    Where two ranks add up, NCCL has to come to the same bits.
    """
    is_right = True
    count = 20 if here.is_tiny else REPLAYS
    for kind in (torch.float32, torch.bfloat16):
        began = time.perf_counter()
        ours = ended(here, kind, count)
        is_same = len(set(here.group.meet(ours))) == 1
        here.say(
            f"{count} replays of {len(WIDTHS)} sums of {kind}, ranks up to 0.1 ms apart:"
            f" {'the same' if is_same else 'NOT THE SAME'} on all ranks,"
            f" {time.perf_counter() - began:.1f} s"
        )
        is_right &= is_same
        if here.group.ranks == PAIR:
            every = here.group.meet(str(int(ended(others, kind, count) == ours)))
            here.say(f"by NCCL: {'OTHER BITS' if '0' in every else 'the same bits'}")
            is_right &= "0" not in every
    return is_right


def ended(here: Here, kind: torch.dtype, count: int) -> str:
    """Return what chains of sums come to after so many steps."""
    chains = [Chain.of(here, width, kind) for width in WIDTHS]
    skewed(here, stepper(here, chains), count)
    return digest(chains)


@attrs.frozen(kw_only=True, eq=False)
class Chain:
    """
    Sums that follow from each other.

    Attributes:
        state: The last one.
        own: What this rank alone adds; over the ranks it comes to nothing.
        past: All that *state* was, of which no bit is ever forgotten.
    """

    state: torch.Tensor
    own: torch.Tensor
    past: torch.Tensor

    @classmethod
    def of(cls, here: Here, width: int, kind: torch.dtype) -> Chain:
        """Return one that begins the same on all ranks."""
        made = torch.Generator().manual_seed(width)
        state, own = (torch.rand(width, generator=made).to(here.device, kind) for _ in range(2))
        past = torch.zeros(width, dtype=torch.int64, device=here.device)
        return cls(state=state, own=-own if here.group.rank % 2 else own, past=past)

    def step(self, here: Here, *, is_added: bool) -> None:
        """Take a step of a map that no small difference survives."""
        part = self.state.square().mul_(-1.9).add_(1).div_(here.group.ranks).add_(self.own)
        if is_added:
            here.group.add(part, self.state.zero_(), 1.0)
        else:
            self.state.copy_(here.group.sum(part))
        self.state.clamp_(-1, 1)
        bits = self.state.view({2: torch.int16, 4: torch.int32}[self.state.itemsize])
        self.past.mul_(31).add_(bits)


def stepper(here: Here, chains: list[Chain]) -> Callable[[], object]:
    """Return what takes chains a step further: a replay of a graph, where there is a GPU."""

    def step() -> None:
        for number, chain in enumerate(chains):
            chain.step(here, is_added=number % 2 == 0)

    if here.device.type == "cpu":
        return step
    step()  # compiles what there is to be
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph.replay


def skewed(here: Here, step: Callable[[], object], count: int) -> None:
    """Take steps, this rank some time before or after the others."""
    device: Any = torch  # has no types for it
    drawn = random.Random(here.group.rank)  # noqa: S311 - nobody is to be kept from guessing it
    for number in range(count):
        if here.device.type == "cuda":
            device.cuda._sleep(drawn.randrange(SKEW_CYCLES))  # noqa: SLF001 - it has no other name
            if number % HOST_EVERY == 0:
                torch.cuda.synchronize()
                time.sleep(drawn.random() / 100)
        step()
    if here.device.type == "cuda":
        torch.cuda.synchronize()


def digest(chains: list[Chain]) -> str:
    """Return what tells the past of chains from any other."""
    every = b"".join(chain.past.cpu().numpy().tobytes() for chain in chains)
    return hashlib.sha256(every).hexdigest()


def reductions(here: Here, others: Here) -> None:
    """Print how long the ranks take to add up tensors, by their size and by the way."""
    here.say("\n## sums over the ranks, microseconds")
    ways: dict[str, Callable[[torch.Tensor], object]] = {
        "NCCL": others.group.sum,
        "ours": here.group.sum,
    }
    sums: Any = here.group.sums
    if sums is not None:
        memory, name = sums._memory, sums._name  # noqa: SLF001 - there is no other
        room = memory.empty_strided_p2p((LARGEST,), (1,), torch.uint8, here.device)
        memory.rendezvous(room, name)
        for shots in ("one_shot", "two_shot"):
            kernel = getattr(torch.ops.symm_mem, f"{shots}_all_reduce_out")
            ways[f"torch's {shots}"] = partial(shot, kernel, room, name)
    sizes = (
        (8 << 10, 256 << 10)
        if here.is_tiny
        else tuple(1 << n for n in range(13, LARGEST.bit_length(), 2))
    )
    for size in sizes:
        told = [f"{size:9} bytes"]
        for title, way in ways.items():
            try:
                told.append(f"{title} {1e6 * sum_s(here, way, size):7.1f}")
            except Exception as error:  # noqa: BLE001 - whatever it is: it is told
                told.append(f"{title}: {type(error).__name__}: {error}".splitlines()[0][:120])
            here.group.meet("")
        here.say("  ".join(told))


def shot(kernel: Any, room: torch.Tensor, name: str, part: torch.Tensor) -> None:
    """Add up by a kernel of torch's what is in symmetric memory, as much as a tensor."""
    kernel(room[: part.nbytes].view(part.dtype), "sum", name, part)


def sum_s(here: Here, way: Callable[[torch.Tensor], object], size: int) -> float:
    """Return how long a sum takes in a graph of some, which on a CPU there is none of."""
    kind, count = (torch.float32, 4) if here.is_tiny else (torch.bfloat16, 20)
    tensor = torch.ones(size // kind.itemsize, dtype=kind, device=here.device)
    if here.device.type == "cpu":
        return seconds(here.device, lambda: way(tensor), count)
    way(tensor)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(count):
            way(tensor)
    return seconds(here.device, graph.replay, 20) / count
