"""
What is computed in a step, in numbers alone: what rank 0 of a group tells the others.

A peer that does as it is told, in order, has the same rows, blocks and states on its device as
rank 0 has on its own.  Plans are numbered by model: one that is left out, or comes twice, is found
out before it does harm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from cortex.neuron.engine.jobs import Generate
from cortex.neuron.engine.places import Places, plain
from cortex.neuron.engine.sequence import Sequence as Running


class Layout(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """
    The tokens of a step.

    Attributes:
        rows: Those that decode, where all do; there is nothing else to say then.
        shape: Numbers of a `Shape`; *packed* is a batch of that.
        counts: New tokens of each sequence, and where they end.
        is_padded: Whether the shape is one of few.
        places: Which sequences of the batch get a token, where not all do.
        is_whole: Whether tokens are drawn from whole rows of logits, not by the best of each rank.
        is_chosen: Whether rank 0 tells the tokens, since it alone knows what may come.
        shown: The shape of what stands for tokens of pictures, which rank 0 spreads, with where
            all tokens are; empty if there is text between pictures alone, None if there are none.
    """

    rows: Sequence[int] = ()
    shape: tuple[int, ...] = ()
    packed: Sequence[int] = ()
    counts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    is_padded: bool = True
    places: Sequence[int] | None = None
    is_whole: bool = False
    is_chosen: bool = False
    shown: tuple[int, ...] | None = None


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """
    A sequence that came to a row; of its job what a device has to know.

    Attributes:
        offset: What is added to the positions of its answer.
    """

    row: int
    planned: int
    offset: int
    job: Generate

    def sequence(self) -> Running:
        """Return one that a peer's rows can take in."""
        places = Places(index=plain(0, 0), offset=self.offset, spans=())
        return Running(self.job, planned=self.planned, row=self.row, places=places)


class Change(msgspec.Struct, frozen=True, array_like=True):
    """What is to be changed on the device before a step: see `Scheduler`."""

    moved: list[tuple[int, int, int]]
    entered: list[Entry]
    copies: list[tuple[int, int]]

    @classmethod
    def of(
        cls,
        moved: Mapping[tuple[int, int], int],
        entered: Mapping[int, Running],
        copies: list[tuple[int, int]],
    ) -> Change | None:
        """Return it, if there is anything to change."""
        if not (moved or entered or copies):
            return None
        return cls(
            [(row, place, block) for (row, place), block in moved.items()],
            [_entry(row, sequence) for row, sequence in entered.items()],
            [*copies],
        )


def _entry(row: int, sequence: Running) -> Entry:
    job = sequence.job
    told = Generate(
        id="",
        model="",
        prompt=sequence.tokens[-1:],
        max_tokens=0,
        temperature=job.temperature,
        top_p=job.top_p,
        top_k=job.top_k,
        min_p=job.min_p,
        seed=sequence.seed,
    )
    return Entry(row, sequence.planned, sequence.offset, told)


class Plan(msgspec.Struct, frozen=True, array_like=True, tag=True, kw_only=True):
    """A step of a model."""

    model: str
    number: int
    changes: list[Change]
    layout: Layout


class Over(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The model is to be let go."""

    model: str


Told = Plan | Over
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Told).decode
