"""
Whether a node that took requests and did not answer them may have another.  Pure; seconds come in.

Closed, it may.  After `FAILURES` in a row it opens for a while, which doubles each time; then it
lets one request through at a time, and closes with the first that is answered.
"""

from __future__ import annotations

FAILURES = 5
FIRST_S, LONGEST_S = 1.0, 30.0


class Breaker:
    """Of one node."""

    def __init__(self) -> None:
        self.failures = 0
        self._pause_s = 0.0
        self._until = 0.0

    @property
    def is_closed(self) -> bool:
        """Whether any number of requests may go there."""
        return not self._pause_s

    def opens(self, now: float) -> bool:
        """
        Count a request without an answer; tell whether that was one too many.

        One that was under way already when it opened says nothing new.
        """
        if self.is_open(now):
            return False
        self.failures += 1
        if self.is_closed and self.failures < FAILURES:
            return False
        self._pause_s = min(max(2 * self._pause_s, FIRST_S), LONGEST_S)
        self._until = now + self._pause_s
        return True

    def closes(self) -> None:
        """Forget it all: a request was answered."""
        self.failures, self._pause_s, self._until = 0, 0.0, 0.0

    def is_open(self, now: float) -> bool:
        """Tell whether no request may go there."""
        return now < self._until


class RetryBudget:
    """
    Lets requests be tried again as long as that is a small part of the traffic.

    Of any number of requests at most *share* are, or *reserve* if that is more; what is not used
    is saved for when a node dies with all it had, up to *most*.
    """

    def __init__(self, share: float = 0.2, reserve: float = 10.0, most: float = 100.0) -> None:
        self._share, self._most = share, most
        self._left = self._lent = reserve

    def request(self) -> None:
        """Count a request; the first ones pay for what may be spent before them."""
        if self._lent > 0:
            self._lent -= self._share
        else:
            self._left = min(self._left + self._share, self._most)

    def take(self) -> bool:
        """Tell whether one may be tried again, and count it."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
