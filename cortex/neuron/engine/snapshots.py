"""
Which slots hold what states were at the ends of blocks, found by the same hashes as the blocks.

A bounded number of them; the least recently used goes first.  Host only, no tensors: what is to be
copied, the scheduler says.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Sequence

from cortex.neuron.engine.blocks import BLOCK_TOKENS

EVERY_TOKENS = 2048  # of a long prompt there is one
OPENING_TOKENS = 256  # fewer are computed again in about the time of one more step


def opening_of(prompt: Sequence[int], end_tokens: Container[int]) -> int:
    """
    Return how many tokens of a prompt others are likely to begin with; 0 if nothing tells.

    They are its first message, if others follow, as a system prompt that many have: each ends with
    an end token of the model's.
    """
    ends = (number for number, token in enumerate(prompt, 1) if token in end_tokens)
    first, second = next(ends, 0), next(ends, 0)
    return first // BLOCK_TOKENS * BLOCK_TOKENS if second and first >= OPENING_TOKENS else 0


class Snapshots:
    """
    Those of one model, in *count* slots from *first* on.

    Attributes:
        end: The first slot behind theirs.
    """

    def __init__(self, first: int, count: int) -> None:
        self.end = first + count
        self._slots = range(first, self.end)
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
