"""
Who computes what in the next step: continuous batching, chunked prefill, preemption.

Rules: what decodes goes first; what is left of the token budget goes to prompts, those under way
before new ones, those in the order of `cortex.neuron.engine.waiting`.  Where blocks run out, the
sequence of the lowest priority, of those the youngest, gives its own back and computes again later,
mostly from what is still found of it.  Host only, no tensors; a plan is made in one stretch.

Of a model that keeps states, a sequence goes on from where both its blocks and a snapshot of its
state are found.  A snapshot is a copy of what a step left, so steps end where one is wanted: where
a prompt's last block ends, at times within a long one, where it parts from those before it, and
where those after it are likely to part from it.
"""

from __future__ import annotations

from math import inf
from operator import eq

import attrs

from cortex.neuron.engine.blocks import BLOCK_TOKENS, Blocks, blocks_for, digest_of
from cortex.neuron.engine.sequence import Sequence
from cortex.neuron.engine.snapshots import EVERY_TOKENS, Snapshots
from cortex.neuron.engine.waiting import Waiting, aged

MOST_DRAFTED = 64  # tokens of drafts in a step: so few cost it little
MOST_REDONE = 4  # tokens, before a sequence goes on without a draft for once


@attrs.frozen
class Chunk:
    """
    The tokens ``start .. start + count`` of a sequence, to be computed in one step.

    Attributes:
        draft: What may follow what is known; it is tried in the same step.
    """

    sequence: Sequence
    start: int
    count: int
    draft: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def samples(self) -> bool:
        """Whether a token comes of it: it reaches the end of what is known."""
        return self.end >= self.sequence.total

    @property
    def is_decode(self) -> bool:
        """Whether it is a sequence's last token, and no more."""
        return self.count == 1 and self.samples and not self.draft

    @property
    def known(self) -> list[int]:
        """Its ids, as far as the host knows them, or guesses."""
        tokens = self.sequence.tokens
        guessed = self.draft[max(self.start - len(tokens), 0) : max(self.end - len(tokens), 0)]
        return [*tokens[self.start : self.end], *guessed]

    @property
    def follows(self) -> int | None:
        """The guess its last token is, if it is one."""
        place = self.end - 1 - len(self.sequence.tokens)
        return self.draft[place] if self.draft and place >= 0 else None

    def singly(self) -> list[Chunk]:
        """Return it token by token, those of its draft included."""
        return [
            attrs.evolve(self, start=place, count=1)
            for place in range(self.start, self.end + len(self.draft))
        ]

    @property
    def is_pictured(self) -> bool:
        """Whether there are pictures in or behind it."""
        places = self.sequence.places
        return places is not None and self.start < places.until


class Scheduler:
    """
    The sequences of one model.

    Attributes:
        running: Those that have a row, the oldest first.
        waiting: Those that have none.
        moved: Blocks that came into tables of rows since that was last read, by row and place.
        entered: Sequences that came to rows since that was last read, by row.
        copies: Of states, from slot to slot, to be made in this order before the next step.
        preemptions: How often a sequence gave its blocks back.
        hit_tokens: Prompt tokens found in the cache; *asked_tokens* of all.
        drafted_tokens: Tokens of drafts that were tried; *accepted_tokens* of them came true.
    """

    def __init__(
        self,
        blocks: Blocks,
        *,
        rows: int,
        budget_tokens: int,
        snapshots: Snapshots | None = None,
        foreseen_tokens: int = 0,
    ) -> None:
        self.blocks = blocks
        self.snapshots = snapshots
        self._foreseen_tokens = foreseen_tokens  # their keys are written, though nothing needs them
        self.running: dict[str, Sequence] = {}
        self.waiting = Waiting()
        self.moved: dict[tuple[int, int], int] = {}
        self.entered: dict[int, Sequence] = {}
        self.copies: list[tuple[int, int]] = []
        self.preemptions = 0
        self.hit_tokens = 0
        self.asked_tokens = 0
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self._budget_tokens = budget_tokens
        self._rows = list(range(rows, 0, -1))  # row 0 is padding's

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn; it fits the cache, alone."""
        self.waiting.join(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Let a sequence go, wherever it is."""
        self.waiting.leave(sequence)
        if self.running.pop(sequence.id, None) is not None:
            self._release(sequence)

    def plan(self, now: float) -> list[Chunk]:
        """
        Return what to compute next, decoding first; nothing if there is nothing to do.

        Args:
            now: What `perf_counter` says.
        """
        chunks: list[Chunk] = []
        left = self._budget_tokens
        wanting = [s for s in self.running.values() if s.wants_step]
        wanting.sort(key=_turn)
        drafts = MOST_DRAFTED
        for sequence in wanting:
            if (
                left
                and sequence.row >= 0
                and (chunk := self._continue(sequence, left, chunks, now))
            ):
                if 0 < len(sequence.draft) <= min(left - chunk.count, drafts) and chunk.samples:
                    chunk = self._drafting(chunk)
                self._foresee(chunk)
                chunks.append(chunk)
                left -= chunk.count + len(chunk.draft)
                drafts -= len(chunk.draft)
        while left and self.waiting and self._rows:
            sequence = self.waiting.next(now)
            if not (count := self._admit(sequence, left)):
                break
            chunk = Chunk(sequence, sequence.planned, count)
            self._foresee(chunk)
            chunks.append(chunk)
            left -= count
        return chunks

    @property
    def is_drafting(self) -> bool:
        """Whether a sequence has a draft to try, for which all it said has to be known."""
        return any(sequence.draft for sequence in self.running.values())

    def launched(self, chunks: list[Chunk]) -> None:
        """Take note that *chunks* are on their way: their keys will be there for what follows."""
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.in_flight += chunk.samples
            sequence.planned = chunk.end
            self.keep(sequence)
            if sequence.marks and sequence.marks[0] == chunk.end:
                self._snap(sequence, sequence.marks.pop(0))

    def settle(self, chunk: Chunk) -> None:
        """
        Take note of what became of a draft that was tried.

        Its sequence goes on behind what came true.  A state that tokens got into which did not is
        that of before, and so what the step computed is computed again, with what comes next.
        Of a sequence that ended it is only counted: behind the end nothing came true.
        """
        sequence = chunk.sequence
        accepted = sum(map(eq, sequence.tokens[chunk.end :], chunk.draft))
        self.drafted_tokens += len(chunk.draft)
        self.accepted_tokens += accepted
        if sequence.reason is not None:
            return
        sequence.planned = chunk.end + accepted
        if self.snapshots is not None and accepted < len(chunk.draft):
            self.copies.append((self._spare(sequence), sequence.row))
            sequence.planned = chunk.start
        sequence.redone = len(sequence.tokens) - 1 - sequence.planned
        self.entered[sequence.row] = sequence
        if sequence.guesser is not None:
            sequence.guesser.settle(len(chunk.draft), accepted)

    def broken(self, chunks: list[Chunk]) -> None:
        """
        Take note that a step of *chunks* broke off, and that none before it is on its way.

        States and what rows keep of their sequences are anything now, blocks are not.
        """
        for sequence in (chunk.sequence for chunk in chunks):
            if sequence.row < 0:
                continue
            if self.snapshots is not None:
                self._preempt(sequence)
            else:
                self.entered[sequence.row], sequence.tallied = sequence, -1

    def keep(self, sequence: Sequence) -> None:
        """Let the full blocks of a sequence be found."""
        if sequence.planned < (sequence.kept + 1) * BLOCK_TOKENS:
            return
        known = min(sequence.planned, len(sequence.tokens)) // BLOCK_TOKENS
        while sequence.kept < known:
            block = sequence.blocks[sequence.kept]
            self.blocks.keep(block, digest(sequence, sequence.kept))
            sequence.kept += 1

    def check(self) -> None:
        """Check, when nothing runs, that everything was given back."""
        self.blocks.check()
        if self.snapshots is not None:
            self.snapshots.check()
        assert self.running or not self.blocks.used, "blocks are lost"  # noqa: S101

    def _continue(
        self, sequence: Sequence, left: int, chunks: list[Chunk], now: float
    ) -> Chunk | None:
        """Return what a sequence goes on with, of *left* tokens at most; others may have to go."""
        start = sequence.planned
        count = _count(sequence, left)
        while not self._grow(sequence, start + count):
            planned = {chunk.sequence for chunk in chunks}
            others = [s for s in self.running.values() if s not in planned]
            victim = min(others, key=lambda s: (aged(s, now), -s.received))
            self._preempt(victim)
            if victim is sequence:
                return None
        return Chunk(sequence, start, count)

    def _drafting(self, chunk: Chunk) -> Chunk:
        """
        Let a sequence try its draft, if there is room and it has not much to do again.

        Where a snapshot is wanted it tries none, which would be in it.
        """
        sequence, draft = chunk.sequence, chunk.sequence.draft
        is_able = not sequence.marks and chunk.count <= 1 + MOST_REDONE
        if not is_able or not self._grow(sequence, chunk.end + len(draft)):
            return chunk
        if self.snapshots is not None:
            self.copies.append((sequence.row, self._spare(sequence)))
        return attrs.evolve(chunk, draft=tuple(draft))

    def _foresee(self, chunk: Chunk) -> None:
        """Have blocks for what is guessed behind a chunk, if there are some."""
        if self._foreseen_tokens and chunk.samples:
            sequence = chunk.sequence
            most = sequence.prompt_tokens + sequence.job.max_tokens
            end = chunk.end + len(chunk.draft) + self._foreseen_tokens
            self._grow(sequence, min(end, most))

    def _spare(self, sequence: Sequence) -> int:
        """Return the slot where its state is kept while a draft is tried."""
        assert self.snapshots is not None  # noqa: S101 - there are states
        return self.snapshots.end + sequence.row - 1

    def _admit(self, sequence: Sequence, left: int) -> int:
        """Give a sequence a row and blocks for what it can compute now; 0 if there is no room."""
        sequence.row = self._rows.pop()
        slot = self._find(sequence)
        if blocks_for(sequence.total) - len(sequence.blocks) > self.blocks.free:
            self._release(sequence)  # admitted piecemeal it would be preempted soon
            return 0
        count = _count(sequence, left)
        self._grow(sequence, sequence.planned + count)
        for place, block in enumerate(sequence.blocks):
            self.moved[sequence.row, place] = block
        self.entered[sequence.row] = sequence
        if self.snapshots is not None:
            self.copies.append((slot, sequence.row))
        self.waiting.take(sequence)
        self.running[sequence.id] = sequence
        if not sequence.epoch:
            sequence.cached = sequence.planned
            self.hit_tokens += sequence.cached
            self.asked_tokens += sequence.prompt_tokens
        return count

    def _find(self, sequence: Sequence) -> int:
        """
        Share the blocks that hold what a sequence begins with; one token at least is left.

        Returns:
            The slot of the state it begins with, if the model keeps states.
        """
        found: list[int] = []
        for number in range((len(sequence.tokens) - 1) // BLOCK_TOKENS):
            if (block := self.blocks.find(digest(sequence, number))) is None:
                break
            found.append(block)
        count, slot = len(found), 0
        if self.snapshots is not None:
            count, slot = self._remember(sequence, count, self.snapshots)
        for block in found[:count]:
            self.blocks.share(block)
        sequence.blocks = found[:count]
        sequence.kept = count
        sequence.planned = count * BLOCK_TOKENS
        return slot

    @staticmethod
    def _remember(sequence: Sequence, found: int, snapshots: Snapshots) -> tuple[int, int]:
        """Return how many of the blocks *found* there is a snapshot after, and its slot."""
        count = found
        while count and digest(sequence, count - 1) not in snapshots:
            count -= 1
        total = len(sequence.tokens)
        last, whole = ((n // BLOCK_TOKENS) * BLOCK_TOKENS for n in (total - 1, total))
        parts = (found * BLOCK_TOKENS, sequence.opening)
        marks = {*range(0, total, EVERY_TOKENS), *parts, last, whole}
        sequence.marks = sorted(mark for mark in marks if mark > count * BLOCK_TOKENS)
        return count, snapshots.find(digest(sequence, count - 1)) if count else 0

    def _snap(self, sequence: Sequence, tokens: int) -> None:
        """Have a sequence's state kept, which so many tokens led to."""
        assert self.snapshots is not None  # noqa: S101 - there are no marks without
        slot = self.snapshots.keep(digest(sequence, tokens // BLOCK_TOKENS - 1))
        if slot is not None:
            self.copies.append((sequence.row, slot))

    def _grow(self, sequence: Sequence, tokens: int) -> bool:
        if tokens <= len(sequence.blocks) * BLOCK_TOKENS:
            return True
        need = blocks_for(tokens) - len(sequence.blocks)
        if need > self.blocks.free:
            return False
        for _ in range(need):
            block = self.blocks.take()
            if sequence.id in self.running:
                self.moved[sequence.row, len(sequence.blocks)] = block
            sequence.blocks.append(block)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        del self.running[sequence.id]
        self._release(sequence)
        sequence.in_flight = 0  # what is on its way is dropped with it
        sequence.epoch += 1
        self.preemptions += 1
        self.waiting.join(sequence)

    def _release(self, sequence: Sequence) -> None:
        for block in reversed(sequence.blocks):
            self.blocks.drop(block)
        self._rows.append(sequence.row)
        self.entered.pop(sequence.row, None)
        sequence.blocks, sequence.kept, sequence.marks = [], 0, []
        sequence.row, sequence.planned, sequence.redone = -1, 0, 0
        sequence.draft = []


def _turn(sequence: Sequence) -> float:
    """Return what puts decoding first, by priority: who is last may have to give its blocks."""
    return inf if sequence.is_prefilling else -sequence.job.priority


def _count(sequence: Sequence, left: int) -> int:
    """Return how many tokens a sequence can go on with, of *left* at most."""
    end = sequence.marks[0] if sequence.marks else sequence.total
    return min(end - sequence.planned, left)


def digest(sequence: Sequence, number: int) -> bytes:
    """Return the hash of a sequence's block, one after the last that was asked for at most."""
    if number == len(sequence.digests):
        before = sequence.digests[-1] if number else b""
        start = number * BLOCK_TOKENS
        end = start + BLOCK_TOKENS
        mark = b"" if sequence.places is None else sequence.places.mark(start, end)
        sequence.digests.append(digest_of(before, sequence.tokens[start:end], mark))
    return sequence.digests[number]
