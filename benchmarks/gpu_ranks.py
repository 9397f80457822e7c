"""Ranks of a benchmark: processes of one program that run side by side on a GPU each."""

from __future__ import annotations

import argparse
import os
import queue
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import attrs
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from cortex.neuron.engine.group import Ranks  # noqa: E402
from cortex.neuron.engine.place import Place  # noqa: E402
from cortex.neuron.processes import ALONE  # noqa: E402

QUIET = {**ALONE, "NVSHMEM_DISABLE_NVLS": "1", "TQDM_DISABLE": "1"}


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


def start(ranks: int, limit_s: float) -> int:
    """Run a process for each rank, which sees one GPU; returns 1 if one fails, others then end."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = said.split(",") if said else [*map(str, range(ranks))]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *sys.argv, f"--folder={folder}"]
        running = []
        for rank in range(ranks):
            env = {**os.environ, **QUIET, "CUDA_VISIBLE_DEVICES": there[rank % len(there)]}
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
    device = torch.device("cuda", 0)
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


def leave(why: str) -> None:
    """End, since another rank is gone."""
    print(why, file=sys.stderr, flush=True)
    os._exit(1)
