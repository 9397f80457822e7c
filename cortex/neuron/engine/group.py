"""
A group of ranks: the device workers that run the same models together, each a share of them.

Rank 0 leads: it plans, and tells its peers, in order.  Tensors meet in collectives: NCCL's on CUDA,
gloo's on a CPU, over a process group of this group's own; sums also in memory that the GPUs share,
where that was seen to work.  A rank that leaves without a word takes the others along, whatever
they wait for: none of them can go on.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
import torch.distributed

from cortex.neuron.engine import frames, sums
from cortex.neuron.engine.place import Place

MEETING_S = 3600.0  # who waits so long for others was forgotten; the neuron ends who is stuck
PARTING_S = 30.0  # so long others get to reach a meeting of which one knows that it fails


class Group(Protocol):
    """
    What a rank has to do with the others; all ranks call the same in the same order.

    Attributes:
        rank: This one, from 0.
        ranks: How many there are.
    """

    rank: int
    ranks: int

    def sum(self, part: torch.Tensor) -> torch.Tensor:
        """Return the sum of what the ranks have, on all of them; *part* may be overwritten."""

    def add(self, part: torch.Tensor, to: torch.Tensor, factor: float) -> None:
        """Add *factor* times that sum to a contiguous tensor."""

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """Return what each rank has: [ranks, ...]."""

    def spread(self, tensor: torch.Tensor) -> None:
        """Overwrite a contiguous tensor with what rank 0 has in it."""

    def tell(self, body: bytes) -> None:
        """Have the peers hear *body*, in the order it was told; rank 0 only."""

    def meet(self, said: str) -> list[str]:
        """Return what each rank says, once all of them did; on the host, the device goes on."""


class RankFailed(RuntimeError):
    """Another rank could not go on with what all of them were at; `code` is of its error."""

    def __init__(self, rank: int, code: str, message: str) -> None:
        super().__init__(f"rank {rank}: {message}")
        self.code = code


class _Note(msgspec.Struct, array_like=True, frozen=True):
    """What a rank says where they meet; *code* is set if it fails."""

    said: str
    code: str = ""


class Ranks:
    """
    The group of a device worker; it lasts as long as models run on it.

    Attributes:
        models: Names of them.
        sums: What adds up what is small; None: the collectives do, as everything else.
    """

    def __init__(
        self,
        place: Place,
        device: torch.device,
        *,
        hear: Callable[[bytes], None],
        lost: Callable[[str], None],
        shares: bool = True,
    ) -> None:
        """
        Wait for the other ranks.

        Args:
            place: Where they meet, and which rank this is.
            device: Where tensors are.
            hear: Called with what rank 0 tells, on another thread.
            lost: Called with what there is to say of a rank that is gone, on another thread.
            shares: Whether sums go through memory that GPUs share, where that works.
        """
        self.rank, self.ranks = place.rank, place.ranks
        self.models: set[str] = set()
        self._hear, self._lost = hear, lost
        self._closing = False
        self._meetings = 0
        folder = Path(place.folder)
        self._store: Any = _c10d().FileStore(str(folder / "store"), self.ranks)
        self._store.set_timeout(timedelta(seconds=MEETING_S))
        self._links = self._linked(folder / "plans")
        self._collectives = _collectives(self._store, place, device)
        self.sums: sums.Sums | None = None
        if shares:
            store = _c10d().PrefixStore("sums", self._store)
            told = (store, place, device, self._collectives)
            self.sums = sums.tried(*told, self._reduced, self.meet)

    def _linked(self, path: Path) -> list[socket.socket]:
        """Return sockets to the peers, or to rank 0 if this is one of them."""
        links: list[socket.socket] = []
        if self.rank == 0:
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(str(path))
                listening.listen(self.ranks)
                listening.settimeout(MEETING_S)
                self._store.set("listens", "1")
                for _ in range(1, self.ranks):
                    link, _ = listening.accept()
                    link.settimeout(None)
                    links.append(link)
        else:
            self._store.wait(["listens"])
            links.append(socket.socket(socket.AF_UNIX))
            links[0].connect(str(path))
        for link in links:
            threading.Thread(target=self._listen, args=(link,), daemon=True).start()
        return links

    def _listen(self, link: socket.socket) -> None:
        while (body := frames.receive(link)) is not None:
            self._hear(body)
        if not self._closing:
            self._lost(f"rank {self.rank} of {self.ranks} lost another of its group")

    def sum(self, part: torch.Tensor) -> torch.Tensor:
        part = part.contiguous()
        if self.sums is not None and self.sums.takes(part):
            return self.sums.sum(part)
        return self._reduced(part)

    def _reduced(self, part: torch.Tensor) -> torch.Tensor:
        self._collectives.allreduce([part]).wait()
        return part

    def add(self, part: torch.Tensor, to: torch.Tensor, factor: float) -> None:
        part = part.contiguous()
        if self.sums is not None and self.sums.takes(part):
            self.sums.add(part, to, factor)
        else:
            to.add_(self._reduced(part), alpha=factor)

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        part = part.contiguous()
        every = part.new_empty(self.ranks, *part.shape)
        self._collectives._allgather_base(every.view(-1), part.view(-1)).wait()  # noqa: SLF001 - it has no other name
        return every

    def spread(self, tensor: torch.Tensor) -> None:
        self._collectives.broadcast([tensor], _c10d().BroadcastOptions()).wait()

    def tell(self, body: bytes) -> None:
        framed = frames.framed(body)
        for link in self._links:
            link.sendall(framed)

    def meet(self, said: str) -> list[str]:
        """
        See `Group.meet`.

        Raises:
            RankFailed: Another one cannot go on.
        """
        return self._meet(_Note(said), MEETING_S)

    def fail(self, code: str, message: str) -> bool:
        """
        Say at the next meeting that this rank cannot go on.

        Returns:
            Whether the others heard: if they did not, they wait for this rank in a collective.
        """
        try:
            self._meet(_Note(message, code), PARTING_S)
        except RankFailed:  # so could others not
            return True
        except RuntimeError:
            return False
        return True

    def _meet(self, note: _Note, timeout_s: float) -> list[str]:
        self._meetings += 1
        keys = [f"meeting/{self._meetings}/{rank}" for rank in range(self.ranks)]
        self._store.set(keys[self.rank], msgspec.json.encode(note).decode())
        self._store.wait(keys, timedelta(seconds=timeout_s))
        notes = [msgspec.json.decode(self._store.get(key), type=_Note) for key in keys]
        for rank, other in enumerate(notes):
            if other.code and rank != self.rank:
                raise RankFailed(rank, other.code, other.said)
        return [other.said for other in notes]

    def leave(self, model: str) -> bool:
        """
        Let go of a model, together with the other ranks.

        Returns:
            Whether it was the last one: then the group is no more.
        """
        self.models.discard(model)
        self._closing = not self.models
        self.meet("")
        if self._closing:
            self.close()
        return self._closing

    def close(self) -> None:
        """End it, for this rank."""
        self._closing = True
        for link in self._links:
            with suppress(OSError):  # the other end may be first
                link.shutdown(socket.SHUT_RDWR)
            link.close()
        if self.sums is not None:
            self.sums.leave()
            self.sums = None
        self._collectives.shutdown()


def _collectives(store: Any, place: Place, device: torch.device) -> Any:
    """Return what tensors meet through, which is nobody else's in this process."""
    c10d = _c10d()
    store = c10d.PrefixStore("collectives", store)
    timeout = timedelta(seconds=MEETING_S)  # the watchdog is sooner
    if device.type == "cuda":
        nccl = c10d.ProcessGroupNCCL.Options()
        nccl._timeout = timeout  # noqa: SLF001 - it has no other name
        return c10d.ProcessGroupNCCL(store, place.rank, place.ranks, nccl)
    gloo = c10d.ProcessGroupGloo._Options()  # noqa: SLF001 - it has no other name
    gloo._devices = [c10d.ProcessGroupGloo.create_device(hostname="127.0.0.1")]  # noqa: SLF001
    gloo._timeout = timeout  # noqa: SLF001
    return c10d.ProcessGroupGloo(store, place.rank, place.ranks, gloo)


def _c10d() -> Any:
    """Return torch's module, which has no types."""
    return torch.distributed


def least(group: Group | None, *numbers: int) -> tuple[int, ...]:
    """Return the least of each of *numbers* that any rank has."""
    if group is None:
        return numbers
    said = group.meet(" ".join(map(str, numbers)))
    return tuple(map(min, zip(*(map(int, other.split()) for other in said), strict=True)))
