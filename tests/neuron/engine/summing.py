"""
A rank of a group whose shared memory are files: `python -m tests.neuron.engine.summing`.

It tries its sums as a worker does, adds up what is drawn, and says what that came to.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ["TRITON_INTERPRET"] = "1"

import torch

from cortex.neuron.engine import sums
from cortex.neuron.engine.group import Ranks
from cortex.neuron.engine.kernels.fused import allreduce
from cortex.neuron.engine.place import Place
from tests.neuron.engine.test_sums import Registered

SIZES = (2, 1100)


class Files:
    """What torch has for symmetric memory, over files."""

    ProcessGroup = Registered
    _register_process_group = staticmethod(lambda _name, _group: None)
    _unregister_process_group = staticmethod(lambda _name: None)

    def __init__(self, folder, rank, ranks):
        self.paths = [folder / f"room{other}" for other in range(ranks)]
        self.rank = rank
        self._SymmetricMemory = self

    def empty_strided_p2p(self, size, stride, kind, device):
        room = torch.from_file(str(self.paths[self.rank]), shared=True, size=size[0], dtype=kind)
        return room.fill_(-1)  # as memory may be

    def rendezvous(self, room, _):
        self.all = [
            torch.from_file(str(path), shared=True, size=len(room), dtype=room.dtype)
            for path in self.paths
        ]
        self.all[self.rank] = room
        return SimpleNamespace(buffer_ptrs=[room.data_ptr() for room in self.all])


def main(folder, ranks, rank):
    torch.set_num_threads(1)
    files = Files(folder, rank, ranks)
    sums._c10d = lambda: files
    sums.DEVICES = ("cpu",)
    sums.TRIED = (4 * allreduce.SPAN + 4,)
    Registered._register_backend = lambda *_: None
    allreduce.PROGRAMS = 2  # of which each has more than one span
    place = Place(rank=rank, ranks=ranks, folder=str(folder))
    group = Ranks(place, torch.device("cpu"), hear=print, lost=sys.exit)
    group.models.add("m")
    assert group.sums is not None
    said = hashlib.sha256()
    drawn = torch.Generator().manual_seed(1)
    for size in SIZES:
        for kind in sums.KINDS:
            parts = [torch.randn(size, generator=drawn).to(kind) for _ in range(ranks)]
            wanted = 1 + 0.5 * sum(part.float() for part in parts)
            group.add(parts[rank], out := torch.ones(size, dtype=kind), 0.5)
            # the interpreter cuts numbers of 16 bits where a GPU rounds them
            off = 2**-7 if kind == torch.bfloat16 else 0
            torch.testing.assert_close(out, wanted.to(kind), rtol=off, atol=off)
            said.update(out.view(torch.uint8).numpy())
    print(said.hexdigest(), flush=True)
    group.leave("m")
    os._exit(0)  # gloo's threads may outlive the interpreter, to its loss


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
