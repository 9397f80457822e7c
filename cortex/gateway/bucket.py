"""A token bucket: so much at once, so much a minute.  The clock is an argument."""

from __future__ import annotations

import attrs


@attrs.define
class Bucket:
    """
    What is left of a rate; full it holds a minute's worth.

    What is taken may be more than there is: then it has to come in first.

    Attributes:
        per_minute: What comes in in a minute, > 0.
        level: What there was at *since*; below 0 is owed.
        since: Monotonic seconds.
    """

    per_minute: float
    level: float
    since: float

    @classmethod
    def full(cls, per_minute: float, now: float) -> Bucket:
        return cls(per_minute, per_minute, now)

    def wait_s(self, least: float, now: float) -> float:
        """Return the seconds until *least*, at most a minute's worth, is there; 0 is now."""
        self._refill(now)
        return max(0.0, least - self.level) * 60 / self.per_minute

    def take(self, amount: float, now: float) -> None:
        """Take what was used."""
        self._refill(now)
        self.level -= amount

    def resized(self, per_minute: float, now: float) -> Bucket:
        """Return a bucket of another rate with what is left of this one, or owed."""
        self._refill(now)
        return Bucket(per_minute, min(self.level, per_minute), now)

    def _refill(self, now: float) -> None:
        if now > self.since:
            come = (now - self.since) * self.per_minute / 60
            self.level = min(self.per_minute, self.level + come)
            self.since = now
