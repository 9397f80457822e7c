"""
Which slots hold what states were at the ends of blocks, found by the same hashes as the blocks.

A bounded number of them; the least recently used goes first.  Host only, no tensors: what is to be
copied, the scheduler says.
"""

from __future__ import annotations

from collections import OrderedDict

EVERY_TOKENS = 2048  # of a long prompt there is one


class Snapshots:
    """Those of one model, in *count* slots from *first* on."""

    def __init__(self, first: int, count: int) -> None:
        self._slots = range(first, first + count)
        self._free = list(reversed(self._slots))
        self._by_digest: OrderedDict[bytes, int] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._by_digest

    def find(self, digest: bytes) -> int:
        """Use one that is there; returns its slot."""
        self._by_digest.move_to_end(digest)
        return self._by_digest[digest]

    def keep(self, digest: bytes) -> int | None:
        """Return the slot to keep a state in; None if it is kept already, or there are none."""
        if digest in self._by_digest:
            self._by_digest.move_to_end(digest)
            return None
        if not self._slots:
            return None
        slot = self._free.pop() if self._free else self._by_digest.popitem(last=False)[1]
        self._by_digest[digest] = slot
        return slot

    def check(self) -> None:
        """
        Check that each slot is free or holds one state.

        Raises:
            AssertionError: It does not: a mistake of ours.
        """
        held = sorted([*self._free, *self._by_digest.values()])
        assert held == list(self._slots), "slots of snapshots are lost"  # noqa: S101
