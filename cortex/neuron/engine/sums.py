"""
Sums over the ranks of a group in memory that all their GPUs reach, torch's symmetric memory.

What a step adds up is some kilobytes, for which NCCL takes longer than the GPUs do; the kernel is
`cortex.neuron.engine.kernels.fused.allreduce`.  Whether there is such memory, and all sums come out
right, is tried when the group is made: whatever goes wrong on any rank, all of them leave every sum
to NCCL.  `docs/design/sums.md` says why what is done here is safe.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from cortex.neuron.engine.place import Place
from cortex.neuron.engine.poison import is_poison

DEVICES = ("cuda",)
RANKS = 8  # at most
KINDS = (torch.bfloat16, torch.float16, torch.float32)
SENT_BYTES = 8 << 20  # by a rank, with flags; what is larger NCCL adds up as fast
WORD = 4  # bytes; twice as many are sent
MEETING_S = 30.0
FOLDER_CHARS = 80  # torch puts a socket into the temporary directory, and does not count
TRIED = (WORD, 8 << 10, 1000 * WORD, 128 << 10)
TURNS = 5  # sums of a size that follow on each other

log = logging.getLogger(__name__)
Add = Callable[[torch.Tensor], torch.Tensor]


class Sums:
    """
    A room of this rank, to which the others write, and what adds up there.

    It is made first, then joined with those of the others, and then of use, to one thread and one
    stream that do the same in the same order on all ranks.
    """

    def __init__(self, store: Any, place: Place) -> None:
        """
        Make nothing yet.

        Args:
            store: Where the ranks meet.
            place: Which rank this is.
        """
        from cortex.neuron.engine.kernels.fused import allreduce  # is in Triton, as GPUs have it

        self._kernel = allreduce
        self._name = Path(place.folder).name  # of no other group of this process
        self._place = place
        self._store = Numbered(store)
        self._memory = _c10d()._SymmetricMemory  # noqa: SLF001 - it has no other name
        self._limit = SENT_BYTES // 2 // (place.ranks - 1)
        self._spans = self._limit // WORD // allreduce.SPAN

    def make(self, device: torch.device, backend: Any) -> None:
        """
        Make the room.

        Args:
            device: Where tensors are.
            backend: What the group's other collectives go through.
        """
        if len(tempfile.gettempdir()) > FOLDER_CHARS:
            raise ValueError("the temporary directory has too long a name for a socket in it")
        words = 2 * self._place.ranks * self._spans * self._kernel.SPAN
        self._room: torch.Tensor = self._memory.empty_strided_p2p(
            (words,), (1,), torch.int64, device
        )
        self._room.zero_()
        self._turns = torch.zeros(self._spans, dtype=torch.int32, device=device)
        kinds = _c10d().ProcessGroup
        self._group = kinds(self._store, self._place.rank, self._place.ranks)
        self._group._register_backend(device, kinds.BackendType.NCCL, backend)  # noqa: SLF001
        self._group._set_group_name(self._name)  # noqa: SLF001
        self._turns.tolist()  # the device is done: nobody writes before the room is empty

    def join(self) -> None:
        """Have the other ranks find the room, of which each has made its own, and find theirs."""
        _c10d()._register_process_group(self._name, self._group)  # noqa: SLF001
        self._joined = self._memory.rendezvous(self._room, self._name)
        rooms = self._joined.buffer_ptrs
        if rooms[self._place.rank] != self._room.data_ptr():
            raise ValueError("a room does not begin where its memory does")
        self._rooms = self._turns.new_tensor(rooms, dtype=torch.int64)

    def leave(self) -> None:
        """Be no more, once no rank has anything to add up."""
        _c10d()._unregister_process_group(self._name)  # noqa: SLF001

    def takes(self, part: torch.Tensor) -> bool:
        """Tell whether this is for a part; if so, it is on all ranks."""
        size = part.nbytes
        return 0 < size <= self._limit and size % WORD == 0 and part.dtype in KINDS

    def sum(self, part: torch.Tensor) -> torch.Tensor:
        """Return the sum of a contiguous part that is taken, which is overwritten with it."""
        self._kernel.allreduce(part, part, self._rooms, self._turns, self._place.rank)
        return part

    def add(self, part: torch.Tensor, to: torch.Tensor, factor: float) -> None:
        """Add *factor* times the sum of a contiguous part that is taken to such a tensor."""
        self._kernel.allreduce(part, to, self._rooms, self._turns, self._place.rank, factor)


class Numbered(torch.distributed.Store):  # type: ignore[misc,name-defined]
    """
    A store in which what torch numbers by process is numbered by group.

    A process counts all its rooms on, and finds others where they count as it does; a worker that
    was in more groups than another would look where that is not.
    """

    def __init__(self, store: Any) -> None:
        super().__init__()
        self._store = store
        self._numbers: list[str] = []  # as torch has them, in the order they come up

    def set(self, key: str, value: bytes) -> None:
        self._store.set(self._ours(key), value)

    def get(self, key: str) -> bytes:
        self.wait([key])
        found: bytes = self._store.get(self._ours(key))
        return found

    def add(self, key: str, count: int) -> int:
        total: int = self._store.add(self._ours(key), count)
        return total

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Wait for keys; never as long as the store would by itself."""
        longest = timedelta(seconds=MEETING_S)
        self._store.wait([self._ours(key) for key in keys], min(timeout or longest, longest))

    def _ours(self, key: str) -> str:
        return re.sub(r"/(\d+)", self._number, key, count=1)

    def _number(self, found: re.Match[str]) -> str:
        if found[1] not in self._numbers:
            self._numbers.append(found[1])
        return f"/{self._numbers.index(found[1])}"


def tried(  # noqa: PLR0917 - what a group has
    store: Any,
    place: Place,
    device: torch.device,
    backend: Any,
    add: Add,
    meet: Callable[[str], list[str]],
) -> Sums | None:
    """
    Return a room that all ranks have and that was seen to add up right; None: none has.

    Args:
        store: Where they meet.
        place: Which rank this is.
        device: Where tensors are.
        backend: What the group's other collectives go through.
        add: Adds up what the ranks have, by another way.
        meet: See `cortex.neuron.engine.group.Group.meet`.
    """
    if device.type not in DEVICES or not 1 < place.ranks <= RANKS:
        return None
    made = Sums(store, place)
    steps: list[Callable[[], None]] = [
        partial(made.make, device, backend),
        made.join,
        partial(prove, made, place.rank, device, add),
    ]
    for step in steps:
        why = ""
        try:
            step()
        except Exception as error:
            if is_poison(error):
                raise
            why = f"{type(error).__name__}: {error}".splitlines()[0]
        if whys := [f"rank {rank}: {said}" for rank, said in enumerate(meet(why)) if said]:
            if place.rank == 0:
                log.warning("sums over %d GPUs all go by NCCL: %s", place.ranks, "; ".join(whys))
            made.leave()
            return None
    return made


def prove(sums: Sums, rank: int, device: torch.device, add: Add) -> None:
    """
    Have known values of several sizes added up, one sum right after the other.

    They are whole numbers so small that their sums are exact, in whichever order.  All ranks go
    through all of it, since who left sooner would be waited for.

    Raises:
        ValueError: A sum is not what *add* makes of it.
    """
    wrong = []
    for kind, size in product(KINDS, TRIED):
        count = torch.arange(size // kind.itemsize, device=device)
        parts = [((count + 5 * rank + turn) % 31).to(kind) for turn in range(TURNS)]
        found = [sums.sum(part.clone()) for part in parts[1:]]
        found.append(torch.ones_like(parts[0]))
        sums.add(parts[0], found[-1], 2)
        wanted = [add(part) for part in parts[1:]]
        wanted.append(1 + 2 * add(parts[0]))
        if bad := sum(not torch.equal(*pair) for pair in zip(found, wanted, strict=True)):
            wrong.append(f"{bad} of {size} bytes of {kind}")
    if wrong:
        raise ValueError(f"of {TURNS} sums each, wrong were {', '.join(wrong)}")


def _c10d() -> Any:
    """Return torch's module, which has no types."""
    return torch._C._distributed_c10d  # noqa: SLF001
