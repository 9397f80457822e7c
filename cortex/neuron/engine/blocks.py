"""
Which blocks of the KV cache belong to whom: reference counts, and full blocks found again by hash.

A block holds `BLOCK_TOKENS` tokens.  A full one is known by a hash over everything from the start
of its sequence up to its end, so that a prompt that begins like an earlier one shares its blocks.
A block nobody uses stays findable until it is handed out anew, the least recently released first.
Block 0 is nobody's: padding is written there.  Host only, no tensors.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from struct import pack

BLOCK_TOKENS = 16
DIGEST_BYTES = 16


class Blocks:
    """The *count* blocks of one model's cache, block 0 included."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._users = [0] * count
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, count))
        self._by_digest: dict[bytes, int] = {}
        self._digests: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        """How many blocks nobody uses."""
        return len(self._free)

    @property
    def used(self) -> int:
        """How many blocks somebody uses."""
        return self.count - 1 - len(self._free)

    def take(self) -> int:
        """Hand out a block nobody uses; there must be one.  What was in it is lost."""
        block, _ = self._free.popitem(last=False)
        if (digest := self._digests.pop(block, None)) is not None:
            del self._by_digest[digest]
        self._users[block] = 1
        return block

    def find(self, digest: bytes) -> int | None:
        """Return the block that holds what *digest* stands for, if there is one."""
        return self._by_digest.get(digest)

    def share(self, block: int) -> None:
        """Use a block that was found."""
        if not self._users[block]:
            del self._free[block]
        self._users[block] += 1

    def drop(self, block: int) -> None:
        """Use a block no more."""
        self._users[block] -= 1
        if not self._users[block]:
            self._free[block] = None

    def keep(self, block: int, digest: bytes) -> None:
        """Let a block that is full be found by *digest*; the first that had it stays."""
        if digest not in self._by_digest and block not in self._digests:
            self._by_digest[digest], self._digests[block] = block, digest

    def check(self) -> None:
        """
        Check that counts and tables agree.

        Raises:
            AssertionError: They do not: a mistake of ours.
        """
        assert not self._users[0], "block 0 is in use"  # noqa: S101
        for block, users in enumerate(self._users[1:], 1):
            assert (users == 0) == (block in self._free), f"block {block}: {users} users"  # noqa: S101
        for digest, block in self._by_digest.items():
            assert self._digests[block] == digest, f"block {block} is found by another hash"  # noqa: S101


def blocks_for(tokens: int) -> int:
    """Return how many blocks so many tokens take."""
    return -(-tokens // BLOCK_TOKENS)


def digest_of(before: bytes, tokens: Sequence[int], mark: bytes = b"") -> bytes:
    """
    Return the hash of a full block.

    Args:
        before: The hash of the block before it; none of the first.
        tokens: The ids in it.
        mark: What else it holds, such as pictures.
    """
    data = pack(f"<{len(tokens)}I", *tokens) + mark
    return blake2b(data, digest_size=DIGEST_BYTES, key=before[:64]).digest()
