"""Ranks of a benchmark: processes of one program that run side by side on a GPU each."""

from __future__ import annotations

import argparse
import os
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from cortex.neuron.engine.group import Ranks  # noqa: E402
from cortex.neuron.engine.place import Place  # noqa: E402
from cortex.neuron.processes import ALONE  # noqa: E402

PROBE_S = 60
KERNELS = 12
QUIET = {**ALONE, "NVSHMEM_DISABLE_NVLS": "1", "TQDM_DISABLE": "1"}
SEEN = ("own", "all")


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


def fitting(ranks: int) -> str:
    """Return which GPUs a rank has to see to share memory with the others; if none do, its own."""
    for seen in SEEN:
        print(f"# a rank sees {seen}:", flush=True)
        if start(ranks, seen, PROBE_S, "--probe") == 0:
            return seen
    return SEEN[0]


def start(ranks: int, seen: str, limit_s: float, *more: str) -> int:
    """Run a process for each rank; returns 1 if one fails, which ends the others."""
    there = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(ranks)))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *sys.argv, *more, f"--folder={folder}", f"--seen={seen}"]
        running = []
        for rank in range(ranks):
            env = {**os.environ, **QUIET}
            if seen == "own":
                env["CUDA_VISIBLE_DEVICES"] = there.split(",")[rank]
            running.append(subprocess.Popen([*command, f"--rank={rank}"], env=env))  # noqa: S603
        deadline = time.monotonic() + limit_s
        try:
            codes = [process.wait(deadline - time.monotonic()) for process in running]
        except subprocess.TimeoutExpired:
            print(f"not done after {limit_s:.0f} s", flush=True)
            codes = [1]
        finally:
            for process in running:
                process.kill()
                process.wait()
    return int(any(codes))


def device_of(asked: argparse.Namespace) -> torch.device:
    """Return a rank's device."""
    if asked.tiny:
        torch.set_num_threads(1)
        return torch.device("cpu")
    device = torch.device("cuda", 0 if asked.seen == "own" else asked.rank)
    torch.cuda.set_device(device)
    return device


def grouped(asked: argparse.Namespace, device: torch.device, *, shares: bool) -> Here:
    """Return what a rank has in a group of its own kind."""
    folder = Path(asked.folder) / ("shared" if shares else "nccl")
    folder.mkdir(exist_ok=True)
    heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    place = Place(rank=asked.rank, ranks=asked.ranks, folder=str(folder))
    group = Ranks(place, device, hear=heard.put, lost=leave, shares=shares)
    group.models.add("m")
    return Here(group=group, device=device, heard=heard, is_tiny=asked.tiny)


def probe_sums(asked: argparse.Namespace) -> None:
    """End with 1 unless sums go through shared memory."""
    began = time.perf_counter()
    with torch.inference_mode():
        here = grouped(asked, device_of(asked), shares=True)
    is_shared = here.group.sums is not None
    here.say(f"{'memory is shared' if is_shared else 'no memory is shared'}, found in"
             f" {time.perf_counter() - began:.1f} s")  # fmt: skip
    here.group.leave("m")
    if not is_shared:
        os._exit(1)


def leave(why: str) -> None:
    """End, since another rank is gone."""
    print(why, file=sys.stderr, flush=True)
    os._exit(1)


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


def longest(work: Callable[[], object], count: int = 10) -> list[str]:
    """Return which kernels of *work* take longest on the device, in microseconds."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    work()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        for _ in range(count):
            work()
        torch.cuda.synchronize()
    found = sorted(profile.key_averages(), key=lambda each: -each.device_time_total)
    return [
        f"{each.device_time_total / count:8.1f} us in {each.count / count:5.0f}: {each.key[:80]}"
        for each in found[:KERNELS]
    ]
