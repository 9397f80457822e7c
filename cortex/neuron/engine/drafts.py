"""
Tokens that are likely to come next, guessed from what was said before: n-gram speculation.

Where the last tokens of a sequence were said before, what followed them then is the guess, as in
prompt lookup decoding (Saxena, 2023).  A guess costs little where it is wrong and saves a step for
each token where it is right, so more is guessed after what came true, and nothing for a while after
what did not.  Host only, no tensors.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Protocol

GRAMS = (4, 3, 2)  # tokens that have to have been said before
MOST_REST = 32  # steps without a draft
TOKEN_BYTES = array("I").itemsize


class Guesser(Protocol):
    """What guesses how one sequence goes on."""

    def drafts(self, tokens: Sequence[int], foreseen: Sequence[int]) -> list[int]:
        """
        Return what may come next.

        Args:
            tokens: What is known; they begin with those of the last time.
            foreseen: What the model's own layer for it guesses, if it has one.
        """

    def settle(self, drafted: int, accepted: int) -> None:
        """Learn from a draft: how many tokens it had, and how many of them came true."""


class Foreseen:
    """Takes what the model's own layer guesses."""

    def drafts(self, tokens: Sequence[int], foreseen: Sequence[int]) -> list[int]:  # noqa: ARG002
        return [*foreseen]

    def settle(self, drafted: int, accepted: int) -> None:
        """Learn nothing."""


class Ngrams:
    """
    What one sequence said, and how good the guesses at it were.

    Args:
        most: Tokens of a draft, at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._reach = most
        self._rest = 0
        self._misses = 0
        self._said = bytearray()

    def drafts(self, tokens: Sequence[int], foreseen: Sequence[int] = ()) -> list[int]:  # noqa: ARG002
        known = len(self._said) // TOKEN_BYTES
        self._said += array("I", tokens[known:]).tobytes()
        if self._rest > 0:
            self._rest -= 1
            return []
        for size in GRAMS:
            if (place := self._find(size)) is not None:
                since = tokens[place:]  # over and over, where it is shorter than the draft
                return [since[n % len(since)] for n in range(self._reach)]
        return []

    def settle(self, drafted: int, accepted: int) -> None:
        if accepted:
            self._misses = 0
            self._reach = min(max(2 * accepted, self._reach), self._most)
        if accepted < drafted:
            self._reach = accepted + 1
        if not accepted:
            self._misses += 1
            self._rest = min((1 << self._misses) - 1, MOST_REST)

    def _find(self, size: int) -> int | None:
        """Return the place after where the last *size* tokens were said last, if they were."""
        last = bytes(self._said[-size * TOKEN_BYTES :])
        end = len(self._said) - TOKEN_BYTES
        while (at := self._said.rfind(last, 0, end)) >= 0:
            if at % TOKEN_BYTES == 0:
                return at // TOKEN_BYTES + size
            end = at + len(last) - 1
        return None
