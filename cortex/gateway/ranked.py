"""What has most of something: kept in order, so that nobody has to look at everything."""

from __future__ import annotations

from bisect import bisect_left
from typing import Generic, TypeVar

T = TypeVar("T")


class Ranked(Generic[T]):
    """Things by name, in the order of a number that each has."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._order: list[tuple[int, str]] = []
        self._things: list[T] = []  # in the same order

    def put(self, name: str, number: int, thing: T) -> None:
        """Let *thing* have *number* from now on."""
        before = self._numbers.get(name)
        if before == number:
            return
        if before is not None:
            at = bisect_left(self._order, (before, name))
            del self._order[at], self._things[at]
        at = bisect_left(self._order, (number, name))
        self._numbers[name] = number
        self._order.insert(at, (number, name))
        self._things.insert(at, thing)

    def with_at_least(self, number: int) -> list[T]:
        """Return what has *number* or more."""
        return self._things[bisect_left(self._order, (number, "")) :]
