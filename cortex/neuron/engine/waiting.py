"""
Who of those that wait runs next.  Host only, no tensors; the clock is an argument.

A higher priority goes first; waiting raises it, so nobody starves.  Of one priority, who has run
before goes first; then principals take turns by start-time fair queueing (Goyal, Vin and Cheng,
1996), a turn being the tokens of a prompt: somebody with a hundred prompts delays the first of
another by one of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from cortex.neuron.engine.sequence import Sequence

AGEING_S = 30.0  # so long in the engine is worth one step of priority


def aged(sequence: Sequence, now: float) -> int:
    """Return a sequence's priority, raised by the time since it came."""
    return sequence.job.priority + int((now - sequence.received) / AGEING_S)


class Waiting:
    """The sequences that have no row."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[bool, int, str], OrderedDict[str, Sequence]] = {}
        self._ends: dict[str, float] = {}  # of each principal's last turn, virtual time
        self._virtual = 0.0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        for lane in self._lanes.values():
            yield from lane.values()

    def join(self, sequence: Sequence) -> None:
        """Let a sequence wait; one that has run before keeps the turn it had."""
        job = sequence.job
        if not sequence.epoch:
            sequence.begins = max(self._virtual, self._ends.get(job.principal, 0.0))
            self._ends[job.principal] = sequence.begins + sequence.prompt_tokens / job.weight
        self._lanes.setdefault(_lane(sequence), OrderedDict())[sequence.id] = sequence
        self._length += 1

    def next(self, now: float) -> Sequence:
        """Return whose turn it is; somebody waits, and waits on until `take`."""
        return min(self._heads(), key=lambda s: (-aged(s, now), *_turn(s), s.received))

    def _heads(self) -> Iterator[Sequence]:
        for (has_run, _, _), lane in self._lanes.items():
            yield from lane.values() if has_run else [next(iter(lane.values()))]

    def take(self, sequence: Sequence) -> None:
        """Let the one whose turn it is go."""
        self._virtual = max(self._virtual, sequence.begins)
        self.leave(sequence)

    def leave(self, sequence: Sequence) -> None:
        """Let a sequence go that waits no more; nothing if it does not wait."""
        key = _lane(sequence)
        if (lane := self._lanes.get(key)) is None or lane.pop(sequence.id, None) is None:
            return
        self._length -= 1
        if not lane:
            del self._lanes[key]
        if not self._length:
            self._ends.clear()
            self._virtual = 0.0


def _lane(sequence: Sequence) -> tuple[bool, int, str]:
    """Return what its lane is known by: those that never ran are in it in their order."""
    return bool(sequence.epoch), sequence.job.priority, sequence.job.principal


def _turn(sequence: Sequence) -> tuple[bool, float]:
    """Return what the next of one priority has least of: who has run before had its turn."""
    return not sequence.epoch, 0.0 if sequence.epoch else sequence.begins
