"""
What a model's own layer guesses, on the device, at the end of each step that is not all decodes.

The layer takes in each token of the step with the one that follows it, which is known, or was just
picked; so its keys are there for whatever goes on.  Which guesses of the step before came true is
seen here as the host will see it, so it guesses on from the last token of each sequence that
stands: as often as wanted, each time out of what it made of its own guess.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from cortex.neuron.engine.batch import Batch, Shape
from cortex.neuron.engine.cache import Cache
from cortex.neuron.engine.mtp import Mtp
from cortex.neuron.engine.rows import Rows
from cortex.neuron.engine.scheduler import Chunk
from cortex.neuron.engine.sequence import Sequence
from cortex.neuron.engine.step import Shown, Step


class Foresight:
    """Guesses *count* tokens of each sequence."""

    def __init__(self, mtp: Mtp, cache: Cache, rows: Rows, count: int) -> None:
        self._mtp = mtp
        self._cache = cache
        self._rows = rows
        self._count = count

    def run(self, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the model; see `Stack.with_states`."""
        return self._mtp.stack.with_states(step, self._cache)

    def guesses(
        self, batch: Batch, step: Step, states: torch.Tensor, picked: torch.Tensor
    ) -> torch.Tensor:
        """
        Return what each sequence may say after the token it gets in a step: [tips, count] int64.

        Args:
            batch: The step's, with trails.
            step: The same, as it was run.
            states: Of its tokens, after the model's last norm.  # [tokens, width]
            picked: What each sequence of the batch gets.  # [sequences] int64
        """
        said = batch.following
        following = torch.where(said < 0, picked[-1 - said.clamp(max=-1)], said)
        made = self._mtp.states(states, following, step, self._cache, _shown(batch, step))
        at = batch.tips.clamp(min=0)
        for _ in batch.shape.waves[1:]:
            guess = batch.after[at]
            is_true = (guess > 0) & (batch.said[guess] == following[at])
            at = torch.where(is_true, guess, at)
        is_tip = batch.tips >= 0
        owners, positions = batch.owners[at] * is_tip, batch.positions[at] * is_tip
        made = made[at]
        guessed: list[torch.Tensor] = []
        for number in range(self._count):
            if number:
                further = self._step(owners, positions + number, guessed[-1])
                made = self._mtp.states(made, guessed[-1], further, self._cache)
            guessed.append(self._mtp.logits(made).argmax(-1))
        return torch.stack(guessed, 1)

    def _step(self, owners: torch.Tensor, positions: torch.Tensor, ids: torch.Tensor) -> Step:
        """Return a step of one token of each sequence; who is at its row's end stays there."""
        rows = self._rows
        positions = positions.clamp(max=rows.most_tokens - 1)
        ends = positions + 1
        return Step(
            ids=ids,
            positions=positions,
            slots=rows.slots(owners, positions),
            places=positions + rows.offsets[owners],
            rows=owners,
            lengths=ends,
            table=rows.table,
            decodes=len(ids),
            counts=() if ids.is_cuda else (1,) * len(ids),
            ends=() if ids.is_cuda else tuple(ends.tolist()),
        )


def _shown(batch: Batch, step: Step) -> Shown | None:
    """Return the pictures of a step where they follow."""
    if (shown := step.shown) is None:
        return None
    before = (shown.at - 1).clamp(min=0)
    has_one = (shown.at > 0) & (batch.owners[before] == batch.owners[shown.at])
    return Shown(at=before[has_one], features=shown.features[:, has_one])


def trails(waves: list[list[Chunk]], others: list[Chunk], shape: Shape) -> list[int]:
    """
    Return what a batch has to know of its tokens' followers: `Batch`'s fields for that.

    Args:
        waves: What comes alone, no sequence twice in a wave.
        others: What does not.
        shape: Of the batch.
    """
    count = shape.decodes + shape.tokens
    following, after = [0] * count, [0] * count
    ends: dict[str, int] = {}  # the last token of each sequence that is known
    latest: dict[str, int] = {}
    placed = [
        (start + number, start + number, piece)
        for (start, _), wave in zip(shape.spans, waves, strict=False)
        for number, piece in enumerate(wave)
    ]
    place = shape.decodes
    for number, piece in enumerate(others):
        placed.append((place, shape.decodes + number, piece))
        place += piece.count
    for first, sequence, piece in placed:
        last, name = first + piece.count - 1, piece.sequence.id
        known = piece.sequence.tokens[piece.start + 1 : piece.end + 1]
        following[first : first + len(known)] = known
        if piece.samples:
            following[last] = -1 - sequence
        if piece.follows is not None:
            after[latest[name]] = last
        elif piece.samples:
            ends[name] = last
        latest[name] = last
    tips = [-1] * shape.tips
    for number, owner in tipped(waves, others, shape):
        tips[number] = ends.get(owner.id, -1)  # one token of a prompt comes alone, but has none
    return [*following, *after, *tips]


def tipped(
    waves: list[list[Chunk]], others: list[Chunk], shape: Shape
) -> Iterator[tuple[int, Sequence]]:
    """Yield the sequences that are guessed at, and the places of their tips."""
    for number, piece in enumerate(waves[0] if waves else ()):
        yield number, piece.sequence
    for number, piece in enumerate(others, shape.tips - shape.chunks):
        if piece.samples:
            yield number, piece.sequence
